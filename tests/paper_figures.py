"""What the five papers claim, table by table, in their own units, to hold the recipes against.

`TABLES[recipe][title] = {arm: {metric: value}}`, values as fractions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Figures = dict[str, float]
Tables = dict[str, dict[str, Figures]]

AML = ("CBFB_MYH11", "control", "NPM1", "PML_RARA", "RUNX1_RUNX1T1")
BLASTS = ("Benign", "Pre-B", "Pro-B", "Early Pre-B")
SUPPORT = (77, 144, 120, 147)
LEUKAEMIAS = ("ALL", "AML", "CML", "CLL", "H")
CELLS = ("basophil", "erythroblast", "monocyte", "myeloblast", "seg_neutrophil")
PRF = ("precision", "recall", "f1")


def by_class(
    names: Sequence[str],
    metrics: Sequence[str],
    rows: Sequence[Sequence[float]],
    whole: float = 100,
) -> Figures:
    """`per_class.<name>.<metric>` of a table with a row a class."""
    return {
        f"per_class.{name}.{metric}": value / whole
        for name, row in zip(names, rows, strict=True)
        for metric, value in zip(metrics, row, strict=True)
    }


def overall(metrics: str, *values: float) -> Figures:
    """Percentages by the names of metrics in `metrics`."""
    return {m: value / 100 for m, value in zip(metrics.split(), values, strict=True)}


def column(names: Sequence[str], metric: str, values: Sequence[float], whole: float) -> Figures:
    """One metric of every class."""
    return by_class(names, [metric], [[v] for v in values], whole)


def within(place: str, figures: Mapping[str, float]) -> Figures:
    """The same figures below `place`."""
    return {f"{place}.{metric}": value for metric, value in figures.items()}


# --- 1: ConvNeXt ----------------------------------------------------------------------------------

CONVNEXT = ((94, 92, 93), (95, 98, 97), (95, 95, 95), (95, 96, 96), (94, 91, 92))
RESNET50 = ((86, 95, 90), (99, 83, 90), (91, 91, 91), (94, 94, 94), (89, 94, 91))
DENSENET = ((97, 89, 93), (92, 93, 93), (92, 91, 92), (95, 93, 94), (85, 96, 90))
VIT = ((93, 68, 78), (97, 78, 87), (79, 86, 82), (83, 86, 84), (68, 91, 77))
CONVNEXT_AUC = (0.9972, 0.9976, 0.9936, 0.9970, 0.9925)
ABLATION = "validation.accuracy accuracy macro_precision macro_recall macro_f1"
CONVNEXT_TABLES: Tables = {
    "AML subtypes by ConvNeXt (the paper's table of performance)": {
        "convnext-base": overall("accuracy", 95)
        | by_class(AML, PRF, CONVNEXT)
        | column(AML, "specificity", (99, 99, 98, 98, 99), 100)
        | column(AML, "roc_auc", CONVNEXT_AUC, 1),
    },
    "ConvNeXt beside other networks (table 3)": {
        "convnext-base": overall("accuracy", 95) | by_class(AML, PRF, CONVNEXT),
        "resnet50": overall("accuracy", 91) | by_class(AML, PRF, RESNET50),
        "densenet121": overall("accuracy", 92) | by_class(AML, PRF, DENSENET),
        "vit": overall("accuracy", 81) | by_class(AML, PRF, VIT),
    },
    "Ablation of mixup and averaging (section 4.7)": {
        "plain": overall(ABLATION, 94.40, 98.80, 98.80, 98.80, 98.80),
        "mixup": overall(ABLATION, 94.80, 98.13, 98.13, 98.13, 98.13),
        "swa": overall(ABLATION, 94.13, 99.20, 99.21, 99.20, 99.20),
        "mixup-swa": overall(ABLATION, 94.67, 97.47, 97.5, 97.5, 97.5),
    },
}

# --- 2: LoGMH -------------------------------------------------------------------------------------

FOUR = "accuracy macro_precision macro_recall macro_f1"
BINARY = {
    "mlp": overall(FOUR, 92.26, 92.59, 92.38, 92.81),
    "random-forest": overall(FOUR, 91.71, 91.23, 91.66, 91.27),
    "svm": overall(FOUR, 88.37, 88.11, 88.44, 88.79),
    "knn": overall(FOUR, 87.51, 87.66, 87.51, 87.46),
    "sgd": overall(FOUR, 85.36, 85.59, 85.74, 85.65),
    "inception-resnet-v2": overall(FOUR, 96.89, 96.43, 96.61, 96.07),
    "xception": overall(FOUR, 95.41, 95.24, 95.93, 95.21),
    "alexnet": overall(FOUR, 94.01, 94.17, 94.21, 94.11),
    "retinanet": overall(FOUR, 94.55, 94.61, 94.31, 94.76),
    "centernet": overall(FOUR, 93.35, 93.68, 93.29, 93.45),
}
FIVE_CLASSES = {
    "random-forest": overall(FOUR, 88.11, 88.34, 88.11, 88.23),
    "mlp": overall(FOUR, 87.78, 87.86, 87.36, 87.62),
    "knn": overall(FOUR, 86.35, 86.35, 86.64, 86.91),
    "svm": overall(FOUR, 84.21, 84.32, 84.59, 84.88),
    "sgd": overall(FOUR, 85.44, 85.87, 85.49, 85.94),
    "inception-resnet-v2": overall(FOUR, 95.79, 95.33, 95.41, 95.89),
    "alexnet": overall(FOUR, 94.29, 94.49, 94.92, 94.29),
    "xception": overall(FOUR, 93.56, 93.32, 93.93, 93.66),
    "centernet": overall(FOUR, 93.98, 93.93, 93.91, 93.96),
    "retinanet": overall(FOUR, 91.91, 91.93, 91.76, 91.66),
}
FOREST_ERRORS = (12.03, 11.92, 11.98, 11.95, 12.03)
INCEPTION_ERRORS = (4.31, 4.62, 4.58, 4.68, 4.20)
LOGMH_TABLES: Tables = {
    "Binary classifiers, ALL against healthy (table 1)": BINARY,
    "Five-class classifiers (table 2)": FIVE_CLASSES,
    "Each class by Inception-ResNet, binary (text to figure 12)": {
        "inception-resnet-v2": by_class(
            ("ALL", "healthy"), ("recall", "f1"), ((96.9, 96.8), (96.3, 95.1))
        ),
    },
    "Each class, five classes (text to figure 14)": {
        arm: column(LEUKAEMIAS, "recall", [100 - error for error in errors], 100)
        for arm, errors in (
            ("random-forest", FOREST_ERRORS),
            ("inception-resnet-v2", INCEPTION_ERRORS),
        )
    },
}

# --- 3: Otsu --------------------------------------------------------------------------------------

AVERAGES = "accuracy macro_precision macro_recall macro_f1 weighted_f1"
SEGMENTED_1 = ((82.56, 92.21, 87.12), (83.93, 97.92, 90.38), (99.02, 84.17, 90.99),
               (94.70, 85.03, 89.61))  # fmt: skip
RAW_1 = ((84.29, 76.62, 80.27), (68.27, 98.61, 80.68), (100, 61.67, 76.29), (86.76, 80.27, 83.39))
SEGMENTED_2 = ((90, 99, 94), (97, 97, 97), (99, 99, 99), (98, 93, 95))
RAW_2 = ((87, 90, 88), (96, 99, 97), (99, 96, 97), (94, 93, 94))
OTSU_TABLES: Tables = {
    "Test part after fine-tuning (tables 4 and 7)": {
        "segmented": overall(AVERAGES, 97, 96, 97, 97, 97)
        | {"log_loss": 0.0974}
        | by_class(BLASTS, PRF, SEGMENTED_2)
        | column(BLASTS, "support", SUPPORT, 1),
        "raw": overall(AVERAGES, 95, 94, 94, 94, 95)
        | by_class(BLASTS, PRF, RAW_2)
        | column(BLASTS, "support", SUPPORT, 1),
    },
    "Test part after phase 1, the head alone (tables 3 and 6)": {
        "segmented": within(
            "phases.1",
            overall(AVERAGES, 89.75, 90.05, 89.83, 89.52, 89.78)
            | {"log_loss": 0.2915}
            | by_class(BLASTS, PRF, SEGMENTED_1),
        ),
        "raw": within(
            "phases.1",
            overall(AVERAGES, 80.53, 84.83, 79.29, 80.16, 80.35)
            | {"log_loss": 0.4724}
            | by_class(BLASTS, PRF, RAW_1),
        ),
    },
    "Validation part after fine-tuning (tables 2 and 5)": {
        "segmented": within("validation", {"accuracy": 0.9650, "log_loss": 0.1059}),
        "raw": within("validation", {"accuracy": 0.9712, "log_loss": 0.0931}),
    },
}

# --- 4: the lightweight CNN -----------------------------------------------------------------------

HISTORY = (
    (57.20, 1.0856, 90.04, 0.2992),
    (87.40, 0.3327, 92.33, 0.2300),
    (89.68, 0.2666, 92.40, 0.2192),
    (90.83, 0.2584, 92.72, 0.2074),
    (91.98, 0.2266, 91.50, 0.2403),
    (92.59, 0.2028, 92.97, 0.2019),
    (93.16, 0.1862, 93.43, 0.2042),
    (92.75, 0.2051, 93.76, 0.1870),
    (93.31, 0.1812, 93.55, 0.1958),
    (92.97, 0.1913, 94.42, 0.1701),
)
LIGHTWEIGHT_TABLES: Tables = {
    "MobileNetV2 on the validation part (abstract)": {
        "mobilenetv2": overall("accuracy macro_precision macro_recall macro_f1 macro_specificity",
                               94.42, 95.8, 95.6, 95.6, 98.5)
        | {"log_loss": 0.1701, "roc_auc_ovr": 0.997, "cohen_kappa": 0.928},
    },
    "MobileNetV2 by class (class specific performance)": {
        "mobilenetv2": column(CELLS, "recall", (94.1, 94.3, 94.5, 94.2, 94.6), 100),
    },
    "MobileNetV2 epoch by epoch (table 3)": {
        "mobilenetv2": {
            f"history.{epoch}.{name}": value / whole
            for epoch, row in enumerate(HISTORY, start=1)
            for name, value, whole in zip(
                ("train_accuracy", "train_loss", "validation_accuracy", "validation_loss"),
                row, (100, 1, 100, 1), strict=True,
            )
        },
    },
    "Training time (figure 7)": {
        "mobilenetv2": {"environment.seconds": 343.26 * 60},
        "cnn": {"environment.seconds": 732 * 60},
    },
}  # fmt: skip

# --- 5: stacking ----------------------------------------------------------------------------------

CORRECT = (2428, 2983, 2528, 1684, 2057)
TOTAL = (2582, 3046, 2657, 1738, 2161)
FIVE = ("ovr_accuracy", "precision", "recall", "specificity", "f1")
MEANS = "mean_ovr_accuracy macro_precision macro_recall macro_specificity macro_f1"
HYBRID = (
    (97.78, 95.44, 94.04, 98.79, 94.73),
    (98.88, 97.61, 97.93, 99.20, 97.77),
    (98.24, 96.75, 95.14, 99.11, 95.94),
    (98.77, 94.61, 96.89, 99.08, 95.74),
    (98.05, 93.88, 95.19, 98.66, 94.53),
)
HYBRID_MEANS = (98.35, 95.87, 95.84, 98.97, 95.74)
SUBSET = (
    (98.19, 95.95, 93.42, 99.18, 94.67),
    (98.41, 95.33, 98.08, 98.52, 96.68),
    (98.42, 96.63, 95.56, 99.15, 96.09),
    (99.09, 96.05, 98.65, 99.18, 97.33),
    (98.19, 96.84, 94.85, 99.13, 95.83),
)
STEPS = {
    "baseline": (57.74, 88.42, 74.42, 92.82, 90.57),
    "plus-segmentation": (61.05, 90.22, 82.69, 86.01, 88.06),
    "plus-augmentation": (63.9, 89.06, 81.58, 87.24, 88.14),
    "plus-oversampling": (83.10, 93.80, 94.02, 95.25, 94.52),
}
HYBRID_AUC = (0.94, 0.98, 0.97, 0.96, 0.93)
HYBRID_TABLES: Tables = {
    "Hybrid model, by class and overall (table 5)": {
        "hybrid": overall(MEANS, *HYBRID_MEANS) | by_class(AML, FIVE, HYBRID),
    },
    "Hybrid model, counts of the confusion matrix (figure 10)": {
        "hybrid": {"accuracy": 0.9586}
        | {f"per_class.{n}.recall": round(k / m, 4)
           for n, k, m in zip(AML, CORRECT, TOTAL, strict=True)}
        | column(AML, "support", TOTAL, 1),
    },
    "Area under the ROC curve by model (figure 13)": {
        arm: {"roc_auc_ovr": value}
        for arm, value in (("hybrid", 0.97), ("vit", 0.95), ("resnet101", 0.93),
                           ("mobilenetv2", 0.92), ("vgg16", 0.89))
    },
    "Area under the ROC curve by class (figure 14)": {
        "hybrid": column(AML, "roc_auc", HYBRID_AUC, 1),
    },
    "Ablation (table 6)": {
        arm: overall(MEANS.replace("mean_ovr_accuracy", "accuracy"), *values)
        for arm, values in STEPS.items()
    }
    | {"hybrid": overall(MEANS, *HYBRID_MEANS) | {"accuracy": 0.9586}},
    "Hybrid model, re-test on a subset of 2,925 images (table 7)": {
        "hybrid": overall(MEANS, 98.46, 96.16, 96.11, 99.03, 96.12) | by_class(AML, FIVE, SUBSET),
    },
}  # fmt: skip

TABLES: dict[str, Tables] = {
    "convnext-aml": CONVNEXT_TABLES,
    "logmh-transfer": LOGMH_TABLES,
    "otsu-efficientnet": OTSU_TABLES,
    "lightweight-cnn": LIGHTWEIGHT_TABLES,
    "hybrid-stacking": HYBRID_TABLES,
}
