"""The pieces of DICOMweb that need no pipeline: paths, Accept, XML, the response to a store, URLs, CORS."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from dicomweb_fakes import SHIPPED, element, request
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from harmonyd.dimse.dataset_json import MAX_BINARY_BYTES, MalformedDataset, file_to_json
from harmonyd.errors import BadRequest, NotAcceptable, NotFound
from harmonyd.services.dicomweb.accept import Accepted, Offer, accepted, choose, syntaxes
from harmonyd.services.dicomweb.bulkdata import bulk_value
from harmonyd.services.dicomweb.cors import cors_headers
from harmonyd.services.dicomweb.native_xml import to_xml
from harmonyd.services.dicomweb.pixel_file import PixelFile
from harmonyd.services.dicomweb.resources import Resource, parse_path
from harmonyd.services.dicomweb.storing import store_response
from harmonyd.services.dicomweb.transcoding import transcoded
from harmonyd.services.dicomweb.urls import base_url

S, E, I = "/studies/1.2", "/series/1.3", "/instances/1.4"  # noqa: E741
JSON, XML, DICOM = (
    Offer("application/dicom+json"),
    Offer("application/dicom+xml", True),
    Offer("application/dicom", True),
)


# --- paths


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/studies", Resource("studies")),
        ("/studies/", Resource("studies")),
        ("/series", Resource("series")),
        ("/instances", Resource("instances")),
        (f"{S}/series", Resource("series", "1.2")),
        (f"{S}/instances", Resource("instances", "1.2")),
        (f"{S}{E}/instances", Resource("instances", "1.2", "1.3")),
        (S, Resource("study", "1.2")),
        (f"{S}{E}", Resource("series-of", "1.2", "1.3")),
        (f"{S}{E}{I}", Resource("instance", "1.2", "1.3", "1.4")),
        (f"{S}/metadata", Resource("metadata", "1.2")),
        (f"{S}{E}{I}/frames/1,3", Resource("frames", "1.2", "1.3", "1.4", (1, 3))),
        (f"{S}{E}{I}/frames/2/rendered", Resource("rendered", "1.2", "1.3", "1.4", (2,))),
        (f"{S}{E}/thumbnail", Resource("thumbnail", "1.2", "1.3")),
        (
            f"{S}{E}{I}/bulkdata/00400555/2/7FE00010",
            Resource("bulkdata", "1.2", "1.3", "1.4", (), ("00400555", "2", "7FE00010")),
        ),
    ],
)
def test_paths(path: str, resource: Resource) -> None:
    """Each resource of PS3.18 is found."""
    assert parse_path(path) == resource


@pytest.mark.parametrize(
    "path",
    ["/", "/study", "/metadata", f"{S}/studies", f"{S}{E}/series", f"{S}{I}", f"{S}{E}{I}/nothing", f"{S}/frames/1",
     f"{S}{E}{I}/bulkdata", f"{S}{E}{I}/bulkdata/7FE0001", f"{S}{E}{I}/bulkdata/00400555/1", f"{S}{E}{I}/frames"],
)  # fmt: skip
def test_paths_that_are_no_resource(path: str) -> None:
    """They are not found."""
    with pytest.raises(NotFound):
        parse_path(path)


@pytest.mark.parametrize("path", ["/studies/x", "/studies/1..2", f"/studies/{'1' * 65}", f"{S}{E}{I}/frames/0,1"])
def test_paths_with_what_is_no_uid_or_frame(path: str) -> None:
    """They are wrong."""
    with pytest.raises(BadRequest):
        parse_path(path)


# --- Accept


@pytest.mark.parametrize(
    ("accept", "offer"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/dicom+json", JSON),
        ('multipart/related; type="application/dicom+xml"', XML),
        ("multipart/related; type=application/dicom+xml", XML),
        ("multipart/related", XML),
        ("application/dicom+json;q=0.1, multipart/related;type=application/dicom", DICOM),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("application/*", JSON),
    ],
)
def test_what_is_chosen(accept: str, offer: Offer) -> None:
    """The client's order and weights decide, the first offer where it does not say."""
    assert choose(accepted(request(accept=accept)), (JSON, XML, DICOM)) == offer


def test_the_query_stands_in_for_the_header() -> None:
    """``accept`` in the query, for links."""
    ranges = accepted(request(query={"accept": ["application/dicom+json"]}, accept="text/html"))
    assert ranges == [Accepted("application/dicom+json", False, None)]


@pytest.mark.parametrize("accept", ["text/html", "application/dicom+json;q=0", "application/dicom+xml"])
def test_what_is_not_acceptable(accept: str) -> None:
    """The error lists what there is."""
    with pytest.raises(NotAcceptable) as caught:
        choose(accepted(request(accept=f"text/plain, {accept}")), (JSON, XML))
    assert caught.value.extra["offered"] == [str(JSON), str(XML)]


def test_transfer_syntaxes() -> None:
    """In the client's order; none named means as stored."""
    ranges = accepted(
        request(
            accept='multipart/related; type="application/dicom"; transfer-syntax=1.2, multipart/related; type="*/*"'
        )
    )
    assert syntaxes(ranges, DICOM) == ("1.2", "*")
    assert syntaxes([], DICOM) == ("*",)


# --- XML


def test_the_native_model() -> None:
    """Attributes, names, sequences, bulk data and private tags as PS3.19 section A.1 has them."""
    document = to_xml(
        {
            "00100010": element("PN", {"Alphabetic": "Doe^Jane & <Co>", "Ideographic": "山田^太郎"}),
            "00081030": element("LO", "a", None, "c\x00"),
            "00090010": element("LO", "ACME"),
            "00091001": element("LO", "x"),
            "00400275": element("SQ", {"00400009": element("SH", "7")}),
            "7FE00010": {"vr": "OW", "BulkDataURI": 'http://h/"x"'},
            "00420011": {"vr": "OB", "InlineBinary": "AAAA"},
        }
    )
    root = ElementTree.fromstring(document)
    for each in root.iter():
        each.tag = each.tag.rpartition("}")[2]
    assert root.findtext(".//Ideographic/GivenName") == "太郎"
    assert root.findtext(".//Alphabetic/GivenName") == "Jane & <Co>"
    assert [(v.get("number"), v.text) for v in root.findall("*[@keyword='StudyDescription']/Value")] == [
        ("1", "a"),
        ("3", "c\ufffd"),
    ]
    private = root.find("*[@privateCreator='ACME']")
    assert private is not None
    assert private.get("tag") == "00090001"
    assert root.findtext("*[@keyword='RequestAttributesSequence']/Item[@number='1']//Value") == "7"
    assert root.find(".//BulkData").get("uri") == 'http://h/"x"'
    assert root.findtext(".//InlineBinary") == "AAAA"


# --- the response to a store


def outcome(number: int, status: str | None, **more: str) -> dict:
    return {"sop_class_uid": "1.5", "sop_instance_uid": f"1.4.{number}", "status": status, "status_text": "", **more}


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["0x0000"], 200),
        (["0x0000", "0xA700"], 202),
        (["0xB000"], 202),
        (["0xA700", None], 409),
    ],
)
def test_the_status_of_a_store(statuses: list[str | None], expected: int) -> None:
    """All, some or with a warning, none."""
    assert store_response([outcome(n, s) for n, s in enumerate(statuses)], "", "http://h")[0] == expected


def test_reasons_and_urls() -> None:
    """A warning has its reason, a failure too; an object that is none is another failure."""
    places = {"study_instance_uid": "1.2", "series_instance_uid": "1.3"}
    outcomes = [
        outcome(1, "0xB007", **places),
        outcome(2, "0x0122", **places),
        {**outcome(3, "0xC000"), "sop_class_uid": ""},
    ]
    _, response = store_response(outcomes, "1.2", "http://h/dicomweb")
    (stored,), (failed,), (other,) = (response[tag]["Value"] for tag in ("00081199", "00081198", "0008119A"))
    assert stored["00081196"] == element("US", 0xB007)
    assert stored["00081190"] == element("UR", "http://h/dicomweb/studies/1.2/series/1.3/instances/1.4.1")
    assert failed["00081197"] == element("US", 0x0122)
    assert other == {"00081197": element("US", 0xC000)}
    assert response["00081190"] == element("UR", "http://h/dicomweb/studies/1.2")
    several = store_response([outcome(1, "0x0000"), outcome(2, "0x0000", **places)], "", "http://h")[1]
    assert "00081190" not in several


# --- URLs and origins


@pytest.mark.parametrize(
    ("host", "public", "expected"),
    [
        ("pacs.example.org:8080", "", "http://pacs.example.org:8080/dicomweb"),
        ("[::1]:80", "", "http://[::1]:80/dicomweb"),
        ("", "", "/dicomweb"),
        ('evil"><script>', "", "/dicomweb"),
        ("a/b", "", "/dicomweb"),
        ("any", "https://pacs.example.org", "https://pacs.example.org/dicomweb"),
    ],
)
def test_urls(host: str, public: str, expected: str) -> None:
    """The configured one, else the Host if it is one."""
    assert base_url(request(host=host), public) == expected


def test_origins() -> None:
    """Only those that are configured; caches are told that it depends on the origin."""
    assert cors_headers("https://a", ()) == {}
    assert cors_headers("https://b", ("https://a",)) == {"Vary": "Origin"}
    assert cors_headers(None, ("https://a",)) == {"Vary": "Origin"}
    assert cors_headers("https://a", ("https://a",))["Access-Control-Allow-Origin"] == "https://a"
    assert cors_headers("https://b", ("*",))["Access-Control-Allow-Origin"] == "*"


# --- bulk data and transfer syntaxes of files


def _saved(path: Path, ds: Dataset, *, little_endian: bool = True) -> Path:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3"
    ds.save_as(path, implicit_vr=False, little_endian=little_endian, enforce_file_format=True)
    return path


@pytest.mark.filterwarnings("ignore:The value for the data element:UserWarning")
def test_bulk_data_in_sequences(tmp_path: Path) -> None:
    """Its URI has the way to it, and leads there; what is small stays inline, text that is long is bulk data too."""
    inner, ds = Dataset(), Dataset()
    inner.add_new(0x00420011, "OB", b"\1\2" * MAX_BINARY_BYTES)
    ds.add_new(0x00400555, "SQ", Sequence([Dataset(), inner]))
    ds.add_new(0x0008030A, "UT", "x" * 100_000)
    ds.add_new(0x00420011, "OB", b"\1\2")
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.add_new(0x00081048, "UC", "ä" * 70_000)
    ds.add_new(0x30060050, "DS", ["1.5"] * 30_000)
    path = _saved(tmp_path / "a.dcm", ds)
    text = file_to_json(path, "http://h/bulkdata/").decode()
    assert '"BulkDataURI":"http://h/bulkdata/00400555/2/00420011"' in text
    assert '"0008030A":{"vr":"UT","BulkDataURI":"http://h/bulkdata/0008030A"}' in text
    assert '"00420011":{"vr":"OB","InlineBinary":' in text
    assert bulk_value(path, ("00400555", "2", "00420011")) == b"\1\2" * MAX_BINARY_BYTES
    assert bulk_value(path, ("0008030A",)) == b"x" * 100_000
    assert bulk_value(path, ("00081048",)) == ("ä" * 70_000).encode()
    assert bulk_value(path, ("30060050",)).decode().strip().split("\\") == ["1.5"] * 30_000
    for place in (("00400555", "1", "00420011"), ("00400555", "3", "00420011"), ("00420010",), ("00400555",)):
        with pytest.raises(NotFound):
            bulk_value(path, place)


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "image_dfl.dcm"])
def test_pixel_data_is_named(name: str) -> None:
    """Whatever the encoding; without a URI nothing is said, as before."""
    assert '"7FE00010":{"vr":"OW","BulkDataURI":"u/7FE00010"}' in file_to_json(SHIPPED / name, "u/").decode().replace(
        '"OB"', '"OW"'
    )
    assert "7FE00010" not in file_to_json(SHIPPED / name).decode()


def test_big_endian(tmp_path: Path) -> None:
    """Pixels, bulk data and other words come in little endian."""
    big, little = SHIPPED / "MR_small_bigendian.dcm", dcmread(SHIPPED / "MR_small.dcm")
    assert PixelFile(big).octets(1) == little.PixelData
    assert bulk_value(big, ("7FE00010",)) == little.PixelData
    copy = tmp_path / "big.dcm"
    copy.write_bytes(big.read_bytes())
    made = transcoded(copy, [ExplicitVRLittleEndian])
    assert (dcmread(made).pixel_array == little.pixel_array).all()


def test_an_image_that_lies_about_its_size(tmp_path: Path) -> None:
    """A frame that would not fit into memory is not decoded, and pixels that are not there are not sent."""
    ds = Dataset()
    ds.Rows = ds.Columns = 65535
    ds.BitsAllocated, ds.SamplesPerPixel, ds.PixelData = 16, 1, b"\0\0"
    image = PixelFile(_saved(tmp_path / "a.dcm", ds))
    for read in (image.octets, image.pixels):
        with pytest.raises(NotAcceptable):
            read(1)
    ds.add_new(0x00280008, "IS", "1")
    broken = PixelFile(_saved(tmp_path / "c.dcm", ds))
    broken.ds.Rows = None
    with pytest.raises(MalformedDataset):
        broken.octets(1)
    ds.Rows = ds.Columns = 10
    with pytest.raises(NotFound):
        PixelFile(_saved(tmp_path / "b.dcm", ds)).octets(1)
