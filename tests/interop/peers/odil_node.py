"""A receiver made of odil, for the interoperability tests: ``PORT FOLDER``; C-ECHO, and C-STORE into FOLDER.

Runs in Debian's Python, which has odil. It serves one association after the other.
"""

import sys
from pathlib import Path

import odil


def serve(port: int, folder: Path) -> None:
    def stored(message: odil.messages.CStoreRequest) -> int:
        data_set = message.get_data_set()
        uid = data_set.as_string("SOPInstanceUID")[0].decode()
        with odil.open(str(folder / uid), "wb") as stream:
            odil.Writer.write_file(data_set, stream, transfer_syntax=data_set.get_transfer_syntax())
        return 0

    while True:
        association = odil.Association()
        association.receive_association("v4", port)
        echo, store = odil.EchoSCP(association), odil.StoreSCP(association)
        echo.set_callback(lambda message: 0)
        store.set_callback(stored)
        try:
            while True:
                message = association.receive_message()
                is_echo = message.get_command_field() == odil.messages.Message.Command.C_ECHO_RQ
                (echo if is_echo else store)(message)
        except (odil.AssociationReleased, odil.AssociationAborted):
            pass


serve(int(sys.argv[1]), Path(sys.argv[2]))
