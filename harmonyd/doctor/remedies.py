"""What to enter at the PACS, as its configuration spells it."""

from __future__ import annotations


def lines_for(aet: str, host: str, port: int) -> dict[str, str]:
    """The entry for an AE title of ours, by kind of PACS."""
    return {
        "any PACS": f"AE title {aet}, host {host}, port {port}",
        "dcmqrscp.cfg, HostTable": f"harmonyd_{port} = ({aet}, {host}, {port})",
        "orthanc.json, DicomModalities": f'"harmonyd-{port}": ["{aet}", "{host}", {port}]',
        "dcm4chee, AE list, new AET": f"AE Title: {aet}, Hostname: {host}, Port: {port}",
        "Conquest, acrnema.map": f"{aet} {host} {port} un",
    }
