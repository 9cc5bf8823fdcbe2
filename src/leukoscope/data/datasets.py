"""The public data sets Leukoscope knows: what they hold, who made them, how to get them."""

from __future__ import annotations

from dataclasses import dataclass

from leukoscope.data.layouts import AML, BLOODMNIST, FIELD, KAGGLE, LEUKEMIA, LMU, PBC, TALEQANI

UNKNOWN_LICENCE = "not stated; check the source"


@dataclass(frozen=True)
class DataSet:
    """Facts about one data set. `patients` says whether its files tell patients apart."""

    name: str
    title: str
    classes: tuple[str, ...]
    n_images: int | None
    licence: str
    citation: str
    how: str
    layout: str
    patients: bool


_ALL = (
    DataSet(
        name="aml-mll",
        title="AML-Cytomorphology_MLL_Helmholtz (single cells of 189 patients)",
        classes=tuple(AML.values()),
        n_images=81_214,
        licence="CC BY 4.0",
        citation="Hehr et al. 2023, A morphological dataset of white blood cells from patients "
        "with four different genetic AML entities and non-malignant controls, The Cancer Imaging "
        "Archive, doi 10.7937/6PPE-4020",
        how="https://doi.org/10.7937/6PPE-4020 (The Cancer Imaging Archive, by IBM Aspera)",
        layout="aml-mll",
        patients=True,
    ),
    DataSet(
        name="c-nmc",
        title="C-NMC 2019, the labelled training folder (118 subjects in the whole set)",
        classes=("ALL", "healthy"),
        n_images=10_661,
        licence="CC BY 3.0",
        citation="Gupta and Gupta 2019, ALL Challenge dataset of ISBI 2019, The Cancer Imaging "
        "Archive, doi 10.7937/tcia.2019.dc64i46r",
        how="https://doi.org/10.7937/tcia.2019.dc64i46r (The Cancer Imaging Archive); index the "
        "training folder",
        layout="c-nmc",
        patients=True,
    ),
    DataSet(
        name="leukemia-0.2",
        title="Leukemia Dataset 0.2",
        classes=tuple(LEUKEMIA.values()),
        n_images=20_000,
        licence=UNKNOWN_LICENCE,
        citation="Leukemia Dataset 0.2 (Kaggle); used by Haque et al. 2024, "
        "doi 10.3390/biomedinformatics4020054",
        how="https://www.kaggle.com: search for 'Leukemia Dataset 0.2'",
        layout="leukemia-0.2",
        patients=False,
    ),
    DataSet(
        name="taleqani",
        title="Blood Cells Cancer (ALL), Taleqani hospital",
        classes=tuple(dict.fromkeys(TALEQANI.values())),
        n_images=3_242,
        licence=UNKNOWN_LICENCE,
        citation="Ghaderzadeh et al. 2022, A fast and efficient CNN model for B-ALL diagnosis and "
        "its subtypes classification using peripheral blood smear images, Int J Intell Syst, "
        "doi 10.1002/int.22753",
        how="https://www.kaggle.com: search for 'Blood Cells Cancer (ALL)'",
        layout="taleqani",
        patients=False,
    ),
    DataSet(
        name="blood-cancer-kaggle",
        title="Blood Cell Images for Cancer Detection",
        classes=tuple(KAGGLE.values()),
        n_images=5_000,
        licence=UNKNOWN_LICENCE,
        citation="Blood Cell Images for Cancer Detection (Kaggle); used by Hussain et al. 2025; "
        "no doi",
        how="https://www.kaggle.com: search for 'Blood Cell Images for Cancer Detection'",
        layout="blood-cancer-kaggle",
        patients=False,
    ),
    DataSet(
        name="africa-blood",
        title="Africa Blood Cell Images and EHR for Cancer Detection (external test of paper 4)",
        classes=(),
        n_images=None,
        licence=UNKNOWN_LICENCE,
        citation="Africa Blood Cell Images and EHR for Cancer Detection (Kaggle); used by Hussain "
        "et al. 2025; no doi",
        how="https://www.kaggle.com: search for its title; sort it into class folders",
        layout="folder",
        patients=False,
    ),
    DataSet(
        name="pbc",
        title="PBC, normal peripheral blood cells, Hospital Clinic of Barcelona",
        classes=tuple(PBC.values()),
        n_images=17_092,
        licence="CC BY 4.0",
        citation="Acevedo et al. 2020, A dataset of microscopic peripheral blood cell images for "
        "development of automatic recognition systems, Data in Brief, "
        "doi 10.1016/j.dib.2020.105474",
        how="https://doi.org/10.17632/snkd93bnjr.1 (Mendeley Data)",
        layout="pbc",
        patients=False,
    ),
    DataSet(
        name="bccd",
        title="BCCD, fields of view with boxes of red cells, white cells and platelets",
        classes=(FIELD,),
        n_images=364,
        licence="MIT",
        citation="BCCD Dataset, github.com/Shenggan/BCCD_Dataset; no doi",
        how="git clone https://github.com/Shenggan/BCCD_Dataset; index its folder BCCD",
        layout="bccd",
        patients=False,
    ),
    DataSet(
        name="bloodmnist",
        title="BloodMNIST of MedMNIST v2: PBC scaled down to 28 x 28 (also 64, 128, 224)",
        classes=BLOODMNIST,
        n_images=17_092,
        licence="CC BY 4.0",
        citation="Yang et al. 2023, MedMNIST v2, a large-scale lightweight benchmark for 2D and 3D "
        "biomedical image classification, Scientific Data, doi 10.1038/s41597-022-01721-8; images "
        "of Acevedo et al. 2020, doi 10.1016/j.dib.2020.105474",
        how="bloodmnist.npz from https://medmnist.com",
        layout="bloodmnist",
        patients=False,
    ),
    DataSet(
        name="lmu",
        title="AML-Cytomorphology_LMU (single cells of 100 AML patients and 100 controls)",
        classes=tuple(LMU.values()),
        n_images=18_365,
        licence="CC BY 3.0",
        citation="Matek et al. 2019, Human-level recognition of blast cells in acute myeloid "
        "leukaemia with convolutional neural networks, Nature Machine Intelligence, "
        "doi 10.1038/s42256-019-0101-9; data doi 10.7937/tcia.2019.36f5o9ld",
        how="https://doi.org/10.7937/tcia.2019.36f5o9ld (The Cancer Imaging Archive)",
        layout="lmu",
        patients=False,
    ),
    DataSet(
        name="synthetic",
        title="Synthetic smear: drawn by Leukoscope, no photograph of any blood",
        classes=(),
        n_images=None,
        licence="CC0",
        citation="synthetic; made by Leukoscope, no doi",
        how="leukoscope demo",
        layout="csv",
        patients=True,
    ),
)

datasets: dict[str, DataSet] = {entry.name: entry for entry in _ALL}
"""Every known data set by its name."""
