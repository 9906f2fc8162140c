"""C-ECHO with echoscu."""

from __future__ import annotations

from harmonyd.dimse.dcmtk import argv, verdict
from harmonyd.dimse.dcmtk.run import Toolbox, ToolRun
from harmonyd.dimse.engine import OperationContext, Outcome, RemoteNode


async def echo(box: Toolbox, remote: RemoteNode, op: OperationContext) -> Outcome:
    """Raises unless the node answered Success."""
    run = ToolRun(box, op, folder=None)
    try:
        tool = box.tools["echoscu"].path
        await run.start_to(remote, lambda node: argv.echoscu(tool, box.log_config, node), small_dictionary=True)
        record = await run.finish()
        return verdict.final_outcome("echo", "C-ECHO RSP", run.log, record, remote)
    finally:
        await run.close()
