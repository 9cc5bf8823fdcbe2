"""What the five papers do, setting by setting, as facts to hold the recipes against.

Where a paper is silent, the recipe's choice stands here too, so that none changes unnoticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CONVNEXT = {
    "images_per_class": 1000,
    "training.mixed_precision": True,
    "training.averaging.factor": 0.5,
    "training.averaging.anneal_epochs": 5,
    "dataset": "aml-mll",
    "split.clean": "70/15/15",
    "split.published": "70/15/15",
    "split.published_unit": "image",
    "exclude": ["debris", "empty"],  # artefacts and background noise
    "preprocessing.resize.size": 224,
    "preprocessing.equalise_luminance": {},
    "augmentation.rotate.degrees": [-20, 20],
    "augmentation.colour_jitter.brightness": [0.8, 1.2],
    "augmentation.colour_jitter.contrast": [0.8, 1.2],
    "augmentation.colour_jitter.saturation": [0.8, 1.2],
    "augmentation.colour_jitter.hue": 0.1,
    "augmentation.horizontal_flip.p": 0.5,
    "augmentation.vertical_flip.p": 0.5,
    "augmentation.random_resized_crop.scale": [0.8, 1.0],
    "views.online": True,
    "balance": "top_up",
    "model.backbone": "convnext_base.tv_in1k",  # torchvision's IMAGENET1K_V1
    "model.weights": "auto",
    "model.head": [],  # the 5-way layer alone
    "training.optimizer": "adamw",
    "training.weight_decay": 0.01,
    "training.learning_rate": 1e-4,
    "training.backbone_learning_rate": 1e-5,
    "training.schedule": "cosine",
    "training.batch_size": 16,
    "training.patience": 5,
    "training.mixup": 0.4,
    "training.averaging.start": 11,
    "training.phases.0.trained": "head",  # final layers first
    "training.phases.1.trained": "all",  # then gradual unfreezing
    "training.phases.1.unfreeze_every": 2,
    "training.phases.epochs": 50,
}
LOGMH = {
    "dataset": "c-nmc",
    "split.clean": "75/5/20",
    "split.published": "75/5/20",
    "preprocessing.resize.size": 227,
    "preprocessing.logmh": {"sigma": 1.0, "alpha": 1.0, "beta": 1.0, "on": "channels"},
    "augmentation.brightness.factor": [0.8, 1.2],
    "augmentation.pad.fraction": [0.0, 0.1],
    "augmentation.horizontal_flip.p": 0.5,
    "augmentation.vertical_flip.p": 0.5,
    "augmentation.translate.fraction": 0.1,
    "augmentation.rotate.degrees": [-30, 30],
    "augmentation.scale.factor": [0.9, 1.1],
    "augmentation.random_crop.fraction": [0.8, 1.0],
    "balance": "none",
    "training.optimizer": "adam",
    "training.batch_size": 256,
    "training.epochs": 50,
    "training.trained": "all",
}
TRANSFER = LOGMH | {
    "split.folds": 5,
    "views.online": True,
    "model.weights": "auto",
    "training.focal_gamma": 0.0,  # cross-entropy
}
DEEP = LOGMH | {
    "split.folds": 1,
    "features.networks.0.backbone": "alexnet_2012",
    "features.networks.0.layer": "pool5",
    "features.zscore": False,
    "classical.pca": "none",
}
OTSU = {
    "dataset": "taleqani",
    "seed": 0,
    "split.clean": "70/15/15",
    "split.published": "70/15/15",
    "preprocessing.resize.size": 224,
    "preprocessing.otsu_mask": {"polarity": "dark", "kernel": 5},
    "augmentation.rotate.degrees": [-15, 15],
    "augmentation.translate.fraction": 0.1,
    "augmentation.scale.factor": [0.9, 1.1],
    "augmentation.horizontal_flip.p": 0.5,
    "augmentation.vertical_flip.p": 0.5,
    "views.online": True,
    "balance": "class_weights",
    "model.backbone": "tf_efficientnet_b4.aa_in1k",
    "model.weights": "auto",
    "model.head": [{"layer": "dropout", "p": 0.4}],
    "training.optimizer": "adamw",
    "training.learning_rate": 1e-4,
    "training.backbone_learning_rate": 0.0,  # one rate
    "training.weight_decay": 1e-4,
    "training.schedule": "constant",
    "training.batch_size": 8,
    "training.patience": 7,
    "training.phases.0.trained": "head",
    "training.phases.0.epochs": 50,
    "training.phases.1.trained": "last",
    "training.phases.1.layers": 60,
    "training.phases.1.epochs": 30,
}
LIGHTWEIGHT = {
    "training.patience": 3,
    "dataset": "blood-cancer-kaggle",
    "split.published": "80/20/0",
    "split.published_unit": "view",
    "preprocessing.resize.size": 224,
    "preprocessing.stretch_contrast": {"low": 0.5, "high": 99.5},  # a histogram method
    "views.count": 16,
    "views.online": False,
    "augmentation.horizontal_flip.p": 0.5,
    "augmentation.vertical_flip.p": 0.5,
    "augmentation.rotate.choices": [15, 30, 45, 90],
    "augmentation.channel_gain.gain": [0.9, 1.1],
    "augmentation.sharpness.factor": 1.5,
    "augmentation.contrast.factor": [0.8, 1.2],
    "augmentation.gaussian_blur.sigma": [0.5, 1.5],
    "augmentation.gaussian_noise.sigma": [0.01, 0.05],
    "augmentation.random_crop.fraction": [0.8, 1.0],
    "augmentation.elastic.alpha": 30,
    "augmentation.elastic.sigma": 5,
    "balance": "none",
    "model.backbone": "mobilenetv2_100",
    "model.weights": "auto",
    "model.head": [
        {"layer": "dropout", "p": 0.3},
        {"layer": "dense", "units": 128},
        {"layer": "relu"},
        {"layer": "dropout", "p": 0.2},
    ],
    "training.trained": "head",
    "training.optimizer": "adam",
    "training.learning_rate": 5e-4,
    "training.betas": (0.9, 0.999),
    "training.epsilon": 1e-7,
    "training.batch_size": 16,
    "training.epochs": 10,
    "training.steps_per_epoch": 250,
    "training.mixed_precision": True,
}
HYBRID = {
    "dataset": "aml-mll",
    "split.clean": "70/15/15",
    "split.published": "70/15/15",
    "preprocessing.resize.size": 224,
    "preprocessing.hsv_mask": {"hue_low": 110, "hue_high": 175, "value_high": 255},
    "augmentation.rotate.degrees": [-10, 10],
    "augmentation.reflect": {},
    "augmentation.scale.factor": [0.9, 1.1],
    "augmentation.scale.joint": False,  # "on both axes"
    "views.online": True,
    "balance": "oversample",
    "training.optimizer": "adam",
    "training.learning_rate": 1e-4,
    "training.batch_size": 32,
    "training.epochs": 50,
    "training.validate_every": 30,
    "training.trained": "all",
}
STACKED = HYBRID | {
    "features.finetune": True,
    "features.zscore": True,
    "features.networks.0.backbone": "mobilenetv2_100.ra_in1k",
    "features.networks.0.layer": "gap",  # 1280
    "features.networks.1.backbone": "resnet101.tv_in1k",
    "features.networks.1.layer": "gap",  # 2048, the paper's pool5
    "features.networks.2.backbone": "vgg16.tv_in1k",
    "features.networks.2.layer": "fc7",  # 4096
    "classical.classifier": "stacking",
    "classical.pca": "network",
    "classical.coding": "one_vs_rest",
    "classical.svm_kernel": "rbf",
    "classical.forest_trees": 100,
}
MIXUP, AVERAGING = "training.mixup", "training.averaging.start"
TEN = {"training.phases.epochs": 10}
NEITHER = {"views.online": False, "augmentation": [], "balance": "none", "classical.pca": "none"}
PAPERS: dict[str, dict[str, Mapping[str, Any]]] = {
    "convnext-aml": {
        "convnext-base": CONVNEXT,
        "convnext-tiny": CONVNEXT | {"model.backbone": "convnext_tiny.fb_in1k"},
        "resnet50": CONVNEXT | {"model.backbone": "resnet50.tv_in1k"},
        "densenet121": CONVNEXT | {"model.backbone": "densenet121.tv_in1k"},
        "vit": CONVNEXT | {"model.backbone": "vit_base_patch16_224.augreg_in1k"},
        "efficientnet-b0": CONVNEXT | {"model.backbone": "efficientnet_b0.ra_in1k"},
        "plain": CONVNEXT | TEN | {MIXUP: 0.0, AVERAGING: 0, "training.phases.1.unfreeze_every": 1},
        "mixup": CONVNEXT | TEN | {AVERAGING: 0, "training.phases.1.unfreeze_every": 1},
        "swa": CONVNEXT | TEN | {MIXUP: 0.0, AVERAGING: 6, "training.phases.1.unfreeze_every": 1},
        "mixup-swa": CONVNEXT | TEN | {AVERAGING: 6, "training.phases.1.unfreeze_every": 1},
    },
    "logmh-transfer": {
        "inception-resnet-v2": TRANSFER | {"model.backbone": "inception_resnet_v2.tf_in1k"},
        "xception": TRANSFER | {"model.backbone": "legacy_xception.tf_in1k"},
        "alexnet": TRANSFER | {"model.backbone": "alexnet"},
        "retinanet": TRANSFER
        | {"model.backbone": "retinanet", "training.focal_gamma": 2.0, "training.box_weight": 1.0},
        "centernet": TRANSFER | {"model.backbone": "centernet", "training.box_weight": 1.0},
        "mlp": DEEP
        | {"classical.classifier": "mlp", "classical.mlp_optimizer": "adam",
           "classical.mlp_learning_rate": 0.001, "classical.mlp_epochs": 50},
        "random-forest": DEEP
        | {"classical.classifier": "random_forest", "classical.forest_trees": 100,
           "classical.forest_criterion": "gini", "classical.forest_depth": 0},
        "svm": DEEP
        | {"classical.classifier": "svm", "classical.svm_kernel": "rbf", "classical.svm_c": 1.0,
           "classical.svm_gamma": "scale"},
        "knn": DEEP
        | {"classical.classifier": "knn", "classical.knn_neighbours": 5,
           "classical.knn_metric": "euclidean"},
        "sgd": DEEP
        | {"classical.classifier": "sgd", "classical.sgd_loss": "log_loss",
           "classical.sgd_learning_rate": 0.01, "classical.sgd_epochs": 100,
           "classical.sgd_penalty": "l2"},
    },
    "otsu-efficientnet": {
        "segmented": OTSU,
        "raw": {key: value for key, value in OTSU.items() if "otsu_mask" not in key}
        | {"preprocessing": [{"step": "resize", "size": 224}]},
    },
    "lightweight-cnn": {
        "mobilenetv2": LIGHTWEIGHT,
        "efficientnet-b0": LIGHTWEIGHT
        | {"model.backbone": "efficientnet_b0", "training.steps_per_epoch": 1000},
        "cnn": LIGHTWEIGHT
        | {"model.backbone": "cnn", "model.weights": "none", "training.trained": "all"},
    },
    "hybrid-stacking": {
        "hybrid": STACKED,
        "mobilenetv2": HYBRID | {"model.backbone": "mobilenetv2_100.ra_in1k"},
        "resnet101": HYBRID | {"model.backbone": "resnet101.tv_in1k"},
        "vgg16": HYBRID | {"model.backbone": "vgg16.tv_in1k"},
        "vit": HYBRID | {"model.backbone": "vit_base_patch16_224.augreg_in21k_ft_in1k"},
        "baseline": {k: v for k, v in STACKED.items() if not k.startswith(("augm", "preproc"))}
        | {"preprocessing": [{"step": "resize", "size": 224}], **NEITHER},
        "plus-segmentation": {k: v for k, v in STACKED.items() if not k.startswith("augm")}
        | NEITHER,
        "plus-augmentation": STACKED | {"balance": "none", "classical.pca": "none"},
        "plus-oversampling": STACKED | {"classical.pca": "none"},
    },
}  # fmt: skip
ALL_OPERATIONS = {
    "convnext-aml": "rotate colour_jitter horizontal_flip vertical_flip random_resized_crop",
    "logmh-transfer": "brightness pad horizontal_flip vertical_flip translate rotate scale "
    "random_crop",
    "otsu-efficientnet": "rotate translate horizontal_flip vertical_flip scale",
    "lightweight-cnn": "horizontal_flip vertical_flip rotate channel_gain sharpness contrast "
    "gaussian_blur gaussian_noise random_crop elastic",
    "hybrid-stacking": "rotate reflect scale",
}
TRAPS = [
    ("convnext-aml", "MLL-AF9"),
    ("convnext-aml", "1,000 images of each class"),
    ("convnext-aml", "384"),
    ("convnext-aml", "31 M"),
    ("convnext-aml", "t = infinity"),
    ("convnext-aml", "by patient"),
    ("logmh-transfer", "come without boxes"),
    ("logmh-transfer", "before or after the split"),
    ("logmh-transfer", "keep subjects apart"),
    ("logmh-transfer", "sum over all classes"),
    ("otsu-efficientnet", "polarity"),
    ("otsu-efficientnet", "no patient id"),
    ("otsu-efficientnet", "685, not 658"),
    ("otsu-efficientnet", "misprinted"),
    ("otsu-efficientnet", "about 97 %"),
    ("lightweight-cnn", "augments before it splits"),
    ("lightweight-cnn", "macro recall equals accuracy"),
    ("lightweight-cnn", "0.165 M"),
    ("hybrid-stacking", "11,680 of 12,184, 95.86 %"),
    ("hybrid-stacking", "PCA is said to come before"),
    ("hybrid-stacking", "one_vs_one"),
    ("hybrid-stacking", "HSV segmentation are not given"),
    ("hybrid-stacking", "splits images at random"),
]
