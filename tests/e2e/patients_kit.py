"""Objects of a marked patient, whole and damaged."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread

from harmonyd.testing.data import make_study


def marked_study(folder: Path, name: str, number: str, birth: str) -> list[Path]:
    """Two CT images of this patient."""
    study = make_study(folder, 2, patient_id="X")
    for path in study.files:
        dataset = dcmread(path)
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = name, number, birth
        dataset.save_as(path)
    return list(study.files)


def damaged_objects(folder: Path, whole: Path, mark: str) -> list[Path]:
    """Objects with something in the wrong place, all with a mark in it."""
    folder.mkdir()
    made = []
    for keyword, value in (("SOPInstanceUID", mark), ("StudyDate", mark), ("Rows", 1), ("StudyInstanceUID", mark)):
        dataset = dcmread(whole)
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{len(made) + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        setattr(dataset, keyword, value)
        path = folder / f"{keyword}.dcm"
        dataset.save_as(path)
        made.append(path)
    return made
