"""An HTTP server in a process of its own that is a DICOMweb archive as far as its name in the path says: it lies, cuts,
hangs, redirects or sends rubbish. Run as a program, it prints its port; ``GET /seen`` tells what it was asked.
"""

from __future__ import annotations

import gzip
import json
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

SEEN: list[dict[str, Any]] = []
TOKENS: list[str] = []
JSON, MULTIPART = "application/dicom+json", 'multipart/related; type="application/dicom"; boundary=xyz'
STUDIES = [
    {"0020000D": {"vr": "UI", "Value": [f"1.2.{n}"]}, "00100010": {"vr": "PN", "Value": [{"Alphabetic": f"P^{n}"}]}}
    for n in range(1, 8)
]
FILES: list[bytes] = []


class Handler(BaseHTTPRequestHandler):
    """One method for each behaviour."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if parts.path == "/seen":
            self._say(200, json.dumps(SEEN).encode(), JSON)
            return
        behaviour, _, self.rest = parts.path.removeprefix("/").partition("/")
        self.query = parse_qs(parts.query)
        SEEN.append(
            {"as": behaviour, "method": self.command, "path": self.rest, "query": self.query, "size": len(body)}
            | {"authorization": self.headers.get("authorization"), "kind": self.headers.get("content-type")}
        )
        self.body = body
        getattr(self, f"_{behaviour}")()

    do_POST = do_GET  # noqa: N815 - the base class's name

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _say(self, status: int, body: bytes, kind: str = JSON, *, length: int | None = None, **fields: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        if length is not None:
            self.close_connection = True

    def _some(self, found: list[Any], **fields: str) -> None:
        self._say(200, json.dumps(found).encode(), **fields)

    # --- searches

    def _pages(self) -> None:
        """At most three at once, and no word about it."""
        offset, limit = int(self.query.get("offset", ["0"])[0]), int(self.query["limit"][0])
        self._some(STUDIES[offset : offset + limit])

    def _capped(self) -> None:
        """Two at once, whatever the limit, and says so."""
        offset = int(self.query.get("offset", ["0"])[0])
        more = {"Warning": '299 archive: "There are 5 additional results that can be requested"'}
        self._some(STUDIES[offset : offset + 2], **(more if offset + 2 < len(STUDIES) else {}))

    def _nopaging(self) -> None:
        """All at once, whatever the limit."""
        self._some(STUDIES)

    def _nooffset(self) -> None:
        """The first ones, again and again."""
        self._some(STUDIES[: int(self.query["limit"][0])])

    def _zipped(self) -> None:
        self._say(200, gzip.compress(json.dumps(STUDIES).encode()), Content_Encoding="gzip")

    def _zipcut(self) -> None:
        self._say(200, gzip.compress(json.dumps(STUDIES * 50).encode())[:-20], Content_Encoding="gzip")

    def _cut(self) -> None:
        body = json.dumps(STUDIES).encode()
        self._say(200, body[: len(body) // 2], length=len(body))

    def _short(self) -> None:
        """Ends well for HTTP, in the middle of the array."""
        self._say(200, json.dumps(STUDIES).encode()[:-30])

    def _html(self) -> None:
        self._say(200, b"<html>Log in</html>", "text/html")

    def _object(self) -> None:
        self._say(200, b'{"matches": []}')

    def _numbers(self) -> None:
        self._say(200, b"[1, 2]")

    def _huge(self) -> None:
        self._say(200, b'[{"00100010": {"vr": "PN", "Value": ["' + b"x" * 6_000_000 + b'"]}}]')

    def _nocontent(self) -> None:
        self.send_response(204)
        self.end_headers()

    def _nothing(self) -> None:
        """404 for what does not match, as some archives say it."""
        if self.query.get("limit") == ["1"] and len(self.query) == 1:
            self._some(STUDIES[:1])
        else:
            self._say(404, b"{}")

    def _wrong(self) -> None:
        self._say(404, b"no such page", "text/plain")

    def _forbidden(self) -> None:
        self._say(403, b"secret reasons", "text/plain")

    def _unauthorized(self) -> None:
        self._say(401, b"", "text/plain", WWW_Authenticate="Basic realm=x")

    def _broken(self) -> None:
        self._say(500, b"stack trace", "text/plain")

    def _busy(self) -> None:
        self._say(503, b"", "text/plain", Retry_After="17")

    def _moved(self) -> None:
        """To another path of its own."""
        query = urlsplit(self.path).query
        self._say(302, b"", Location=f"/nopaging/{self.rest}?{query}")

    def _elsewhere(self) -> None:
        self._say(302, b"", Location="http://elsewhere.invalid/studies")

    def _circle(self) -> None:
        self._say(302, b"", Location=f"/circle/{self.rest}{len(SEEN)}")

    def _hang(self) -> None:
        time.sleep(20)

    def _rubbish(self) -> None:
        self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
        self.close_connection = True

    def _fromfirst(self) -> None:
        """Counts the limit from the first match on, as Orthanc 1.10 does in some searches."""
        self._some(STUDIES[int(self.query.get("offset", ["0"])[0]) : int(self.query["limit"][0])])

    def _endless(self) -> None:
        """Matches, or one instance, without end; ``/seen`` tells as ``left`` that nobody reads any more."""
        is_search = "includefield" in self.query or "series" not in self.rest
        self.send_response(200)
        self.send_header("Content-Type", JSON if is_search else MULTIPART)
        self.end_headers()
        self.close_connection = True
        try:
            head = b"[" if is_search else b"--xyz\r\nContent-Type: application/dicom\r\n\r\n"
            self.wfile.write(head)
            for number in range(10_000_000):
                study = {"0020000D": {"vr": "UI", "Value": [f"1.3.{number}"]}}
                self.wfile.write(json.dumps(study).encode() + b"," if is_search else bytes(65536))
        except OSError:
            SEEN.append({"as": "left", "search": is_search})

    # --- retrieves: QIDO-RS says three instances

    def _counted(self, body: bytes, kind: str = MULTIPART, **how: Any) -> None:
        if "includefield" in self.query:
            self._some([{"00201208": {"vr": "IS", "Value": [3]}}])
        else:
            self._say(200, body, kind, **how)

    def _parts(self, files: list[bytes]) -> bytes:
        return b"".join(b"--xyz\r\nContent-Type: application/dicom\r\n\r\n" + each + b"\r\n" for each in files)

    def _whole(self) -> None:
        self._counted(self._parts(FILES) + b"--xyz--")

    def _fewer(self) -> None:
        """Well formed, and one is missing."""
        self._counted(self._parts(FILES[:2]) + b"--xyz--")

    def _unclosed(self) -> None:
        """All parts, and no closing boundary."""
        self._counted(self._parts(FILES[:2]))

    def _cutparts(self) -> None:
        whole = self._parts(FILES) + b"--xyz--"
        self._counted(whole[: -len(FILES[2]) // 2], length=len(whole))

    def _damaged(self) -> None:
        self._counted(self._parts([FILES[0], FILES[1][:-100], FILES[2]]) + b"--xyz--")

    def _jpegs(self) -> None:
        self._counted(b"--xyz\r\nContent-Type: image/jpeg\r\n\r\nabc\r\n--xyz--")

    def _page(self) -> None:
        self._counted(b"<html></html>", "text/html")

    def _noparameter(self) -> None:
        """Refuses ``transfer-syntax=*``."""
        if "transfer-syntax" in self.headers.get("accept", ""):
            self._say(406, b"", "text/plain")
        else:
            self._counted(self._parts(FILES) + b"--xyz--")

    def _gone(self) -> None:
        """Found, and not delivered."""
        if "includefield" in self.query:
            self._some([{"00201208": {"vr": "IS", "Value": [3]}}])
        else:
            self._say(404, b"")

    # --- stores

    def _uids(self) -> list[str]:
        # In files of the tests the UIDs stand in plain text behind their tags, in Explicit VR Little Endian.
        found = []
        at = 0
        while (at := self.body.find(b"\x08\x00\x18\x00UI", at)) >= 0:
            size = int.from_bytes(self.body[at + 6 : at + 8], "little")
            found.append(self.body[at + 8 : at + 8 + size].rstrip(b"\0").decode())
            at += 8
        return found

    def _stored(self, failed: dict[str, int], warned: dict[str, int], status: int) -> None:
        def item(uid: str, **more: Any) -> dict[str, Any]:
            return {"00081155": {"vr": "UI", "Value": [uid]}, **more}

        good = [uid for uid in self._uids() if uid not in failed]
        done = [
            item(uid, **({"00081196": {"vr": "US", "Value": [warned[uid]]}} if uid in warned else {})) for uid in good
        ]
        wrong = [item(uid, **{"00081197": {"vr": "US", "Value": [code]}}) for uid, code in failed.items()]
        answer = {"00081199": {"vr": "SQ", "Value": done}} if done else {}
        answer |= {"00081198": {"vr": "SQ", "Value": wrong}} if wrong else {}
        self._say(status, json.dumps(answer).encode())

    def _takes(self) -> None:
        self._stored({}, {}, 200)

    def _takessome(self) -> None:
        uids = self._uids()
        self._stored({uids[1]: 0xA900}, {uids[2]: 0xB000}, 202)

    def _takesnone(self) -> None:
        self._stored(dict.fromkeys(self._uids(), 0x0122), {}, 409)

    def _forgets(self) -> None:
        """Says 200, and mentions one only."""
        uid = self._uids()[0]
        self._say(200, json.dumps({"00081199": {"Value": [{"00081155": {"Value": [uid]}}]}}).encode())

    def _silent(self) -> None:
        self._say(200, b"")

    def _xml(self) -> None:
        items = "".join(
            f'<Item number="{n}">'
            f'<DicomAttribute tag="00081155" vr="UI"><Value number="1">{uid}</Value></DicomAttribute>'
            f'<DicomAttribute tag="00081197" vr="US"><Value number="1">272</Value></DicomAttribute></Item>'
            for n, uid in enumerate(self._uids(), 1)
        )
        text = f'<NativeDicomModel xmlns="x"><DicomAttribute tag="00081198" vr="SQ">{items}</DicomAttribute>'
        self._say(409, f"{text}</NativeDicomModel>".encode(), "application/dicom+xml")

    def _toolarge(self) -> None:
        """One at once will do."""
        if len(self._uids()) > 1:
            self._say(413, b"", "text/plain")
        else:
            self._stored({}, {}, 200)

    def _vanishes(self) -> None:
        """Takes it all, and answers nothing."""
        self.close_connection = True

    # --- tokens

    def _token(self) -> None:
        if self.headers.get("authorization") != "Basic Z3c6czNjcmV0":  # gw:s3cret
            self._say(401, b'{"error": "invalid_client"}')
            return
        TOKENS.append(f"t{len(TOKENS)}")
        self._say(200, json.dumps({"access_token": TOKENS[-1], "token_type": "Bearer", "expires_in": 600}).encode())

    def _secured(self) -> None:
        """Knows the newest token, and forgets the first one."""
        shown = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if shown in TOKENS[1:]:
            self._some(STUDIES)
        else:
            self._say(401, b"")


def main() -> None:
    """``argv``: files of a study; before them ``--tls``, a certificate, its key and who may call."""
    files = sys.argv[1:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if files[:1] == ["--tls"]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[1], files[2])
        context.load_verify_locations(files[3])
        context.verify_mode = ssl.CERT_OPTIONAL
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        files = files[4:]
    FILES.extend(Path(name).read_bytes() for name in files)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
