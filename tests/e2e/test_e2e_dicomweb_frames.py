"""WADO-RS of frames and pictures: the pixels are those that pydicom decodes, in the forms that clients ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
import requests
from archive_peer import ArchivePeer, shipped
from dicomweb_kit import Gateway, dicomweb_over
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

STUDY = "1.2.826.0.1.3680043.8.498.2"
IMAGES = shipped(
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_jp2klossless.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "examples_ybr_color.dcm",
    "rtdose.dcm",
    "examples_palette.dcm",
    "liver_1frame.dcm",
    "test-SR.dcm",
    study=STUDY,
    split=True,
)
CT, RLE, JLS, J2K, RGB, YBR, DOSE, PALETTE, SEG, SR = IMAGES


def _make_segments(ds: Dataset) -> None:
    """Three frames of 15 × 9 single bits: none but the first begins at a byte."""
    ds.Rows, ds.Columns, ds.NumberOfFrames = 15, 9, 3
    bits = np.random.default_rng(1).integers(0, 2, 3 * 15 * 9, dtype=np.uint8)
    data = np.packbits(bits, bitorder="little").tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)


def _document() -> Dataset:
    """A PDF of an odd length, in a series of its own."""
    ds = Dataset()
    ds.PatientID, ds.PatientName, ds.StudyInstanceUID = SR.PatientID, SR.PatientName, STUDY
    ds.SOPClassUID, ds.SOPInstanceUID = EncapsulatedPDFStorage, f"{STUDY}.99.1"
    ds.SeriesInstanceUID, ds.Modality, ds.InstanceNumber = f"{STUDY}.99", "DOC", 1
    ds.MIMETypeOfEncapsulatedDocument, ds.EncapsulatedDocument = "application/pdf", b"%PDF-1.4 nothing\n"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


_make_segments(SEG)
PDF = _document()
STORED = {"image/dicom-rle": RLE, "image/jls": JLS, "image/jp2": J2K, "image/jpeg": YBR}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with ArchivePeer([*IMAGES, PDF]) as peer, dicomweb_over(tmp_path_factory.mktemp("web"), peer.backend) as running:
        yield running


def keys(ds: Dataset) -> tuple[str, str, str]:
    return ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID


def path_of(ds: Dataset) -> str:
    return "/studies/{}/series/{}/instances/{}".format(*keys(ds))


def picture(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("ds", [CT, RLE, JLS, J2K, RGB], ids=lambda ds: ds.file_meta.TransferSyntaxUID.name)
def test_uncompressed_frames(web: Gateway, ds: Dataset) -> None:
    """Frames are uncompressed unless something else is asked for."""
    octets = ("application/octet-stream",)
    for frames in (
        web.client.retrieve_instance_frames(*keys(ds), [1], media_types=octets),
        list(web.client.iter_instance_frames(*keys(ds), [1], media_types=octets)),
    ):
        assert frames == [ds.pixel_array.tobytes()]
    single = web.ask(f"{path_of(ds)}/frames/1", "application/octet-stream")
    assert single.body == ds.pixel_array.tobytes()


@pytest.mark.parametrize(("media_type", "ds"), STORED.items())
def test_compressed_frames_as_they_are_stored(web: Gateway, media_type: str, ds: Dataset) -> None:
    """By their own media type, by any, and by transfer-syntax=*, as OHIF asks; the part says what it is."""
    stored = get_frame(ds.PixelData, 0, number_of_frames=ds.get("NumberOfFrames", 1))
    assert web.client.retrieve_instance_frames(*keys(ds), [1], media_types=(media_type,)) == [stored]
    for accept in (
        'multipart/related; type="*/*"',
        "multipart/related; type=application/octet-stream; transfer-syntax=*",
        f'multipart/related; type="{media_type}"; transfer-syntax={ds.file_meta.TransferSyntaxUID}',
        f"multipart/related; type={media_type.split('/')[0]}/*",
    ):
        ((fields, content),) = web.ask(f"{path_of(ds)}/frames/1", accept).parts()
        assert content == stored, accept
        assert fields["content-type"] == f"{media_type}; transfer-syntax={ds.file_meta.TransferSyntaxUID}"
    assert web.client.retrieve_instance_frames(*keys(ds), [1]) == [stored]


def test_several_frames(web: Gateway) -> None:
    """A list of frames in its own order; frames of single bits do not begin at bytes."""
    frames = web.client.retrieve_instance_frames(*keys(DOSE), [3, 1, 15])
    assert frames == [DOSE.pixel_array[number - 1].tobytes() for number in (3, 1, 15)]
    segments = web.client.retrieve_instance_frames(*keys(SEG), [1, 2, 3])
    packed = [np.packbits(SEG.pixel_array[number].ravel(), bitorder="little").tobytes() for number in range(3)]
    assert segments == packed


def test_frames_that_are_not_there(web: Gateway) -> None:
    """404 beyond the last frame and for a report, 400 for no number, 406 for a form that is not there."""
    for path, status in (
        (f"{path_of(CT)}/frames/2", 404),
        (f"{path_of(SR)}/frames/1", 404),
        (f"{path_of(SR)}/rendered", 404),
        (f"{path_of(CT)}/frames/0", 400),
        (f"{path_of(CT)}/frames/x", 400),
    ):
        assert web.ask(path).status == status, path
    refused = web.ask(f"{path_of(CT)}/frames/1", 'multipart/related; type="image/jp2"')
    assert refused.status == 406
    assert "octet-stream" in json.loads(refused.body)["hint"]
    with pytest.raises(requests.HTTPError, match="404"):
        web.client.retrieve_instance_frames(*keys(CT), [7])


def test_compressed_bulk_data_is_frame_by_frame(web: Gateway) -> None:
    """The BulkDataURI of compressed pixels gives the frames as they are stored."""
    uri = web.client.retrieve_instance_metadata(*keys(RLE))["7FE00010"]["BulkDataURI"]
    stored = get_frame(RLE.PixelData, 0, number_of_frames=1)
    assert web.client.retrieve_bulkdata(uri, media_types=("image/dicom-rle",)) == [stored]
    assert list(web.client.iter_bulkdata(uri, media_types=("application/octet-stream",))) == [RLE.pixel_array.tobytes()]


def test_a_picture_by_the_window_that_is_asked_for(web: Gateway) -> None:
    """A PNG has exactly the values of PS3.3 section C.11.2.1.2.1."""
    answer = web.ask(f"{path_of(CT)}/rendered?window=40,400,linear", "image/png")
    hounsfield = CT.pixel_array * float(CT.RescaleSlope) + float(CT.RescaleIntercept)
    expected = ((hounsfield - 39.5) / 399 + 0.5).clip(0, 1) * 255
    assert np.abs(np.asarray(picture(answer.body)) - expected).max() <= 0.5


@pytest.mark.parametrize("ds", [CT, RLE, RGB, YBR, PALETTE, DOSE], ids=lambda ds: ds.PhotometricInterpretation)
def test_pictures_of_all_kinds(web: Gateway, ds: Dataset) -> None:
    """JPEG is the default; grey, RGB, YBR and palette images, one frame of several."""
    data = web.client.retrieve_instance_rendered(*keys(ds), media_types=("image/jpeg",))
    image = picture(data)
    assert (image.format, image.size) == ("JPEG", (ds.Columns, ds.Rows))
    assert image.mode == ("L" if ds.SamplesPerPixel == 1 and ds is not PALETTE else "RGB")
    assert np.asarray(image).std() > 1
    if ds is RGB:
        original = ds.pixel_array.astype(int)
        png = np.asarray(picture(web.ask(f"{path_of(ds)}/rendered", "image/png").body)).astype(int)
        assert (png == original).all()


def test_viewport_and_quality(web: Gateway) -> None:
    """The picture fits into the viewport; a region is cut out, mirrored where its size is negative."""
    whole = np.asarray(picture(web.ask(f"{path_of(CT)}/rendered", "image/png").body))
    for query, expected in (
        ("viewport=128,128,0,0,64,128", whole[:, :64]),
        ("viewport=128,128,0,0,-128,128", whole[:, ::-1]),
    ):
        answer = web.ask(f"{path_of(CT)}/rendered?{query}", "image/png")
        assert (np.asarray(picture(answer.body)) == expected).all()
    assert picture(web.ask(f"{path_of(CT)}/rendered?viewport=64,32", "image/png").body).size == (32, 32)
    small, large = (web.ask(f"{path_of(CT)}/rendered?quality={quality}", "image/jpeg") for quality in (10, 95))
    assert len(small.body) < len(large.body)
    for query in ("window=1", "window=1,0", "window=1,a", "viewport=0,1", "viewport=1", "quality=101"):
        assert web.ask(f"{path_of(CT)}/rendered?{query}").status == 400, query
    assert "299" in web.ask(f"{path_of(CT)}/rendered?annotation=patient").headers["Warning"]


def test_a_document_is_rendered_as_itself(web: Gateway) -> None:
    """An encapsulated PDF is application/pdf; it is no picture, and a picture is no document."""
    for accept in (None, "application/pdf", "text/html, image/png, */*;q=0.8"):
        answer = web.ask(f"{path_of(PDF)}/rendered", accept)
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/pdf")
        assert answer.body.removesuffix(b"\0") == PDF.EncapsulatedDocument.removesuffix(b"\0")
    for ds, accept in ((PDF, "image/png"), (CT, "application/pdf"), (CT, "text/html")):
        assert web.ask(f"{path_of(ds)}/rendered", accept).status == 406
    for path in (f"{path_of(PDF)}/frames/1/rendered", f"{path_of(PDF)}/thumbnail"):
        assert web.ask(path).status == 404


def test_rendered_frames_and_series(web: Gateway) -> None:
    """One frame is a picture, several are parts; a series is the frames of all its images."""
    one = web.client.retrieve_instance_frames_rendered(*keys(DOSE), [2], media_types=("image/png",))
    assert picture(one).size == (DOSE.Columns, DOSE.Rows)
    assert len(web.ask(f"{path_of(DOSE)}/frames/1,2,3/rendered", "image/jpeg").parts()) == 3
    series = web.ask(f"/studies/{STUDY}/series/{STUDY}.2/rendered", 'multipart/related; type="image/jpeg"')
    assert len(series.parts()) == len([ds for ds in IMAGES if ds.SeriesInstanceUID == RLE.SeriesInstanceUID]) == 3
    assert web.client.retrieve_series_rendered(*keys(CT)[:2], media_types=("image/jpeg",)).startswith(b"--")


def test_thumbnails(web: Gateway) -> None:
    """A small picture of an instance, a series and a study."""
    for path in (path_of(CT), f"{path_of(DOSE)}/frames/2", f"/studies/{STUDY}/series/{STUDY}.2", f"/studies/{STUDY}"):
        answer = web.ask(f"{path}/thumbnail")
        assert answer.headers["Content-Type"] == "image/jpeg", answer.body
        assert max(picture(answer.body).size) == 128
