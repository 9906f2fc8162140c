"""What DCMTK 3.6.7 wrote, with the log configuration of ``harmonyd.dimse.dcmtk.log_config``, to peers that misbehaved.

The sources of 3.6.8, 3.6.9 and 3.7.0 print the same lines, unless a test says otherwise.
"""

from __future__ import annotations

from harmonyd.dimse.dcmtk.log import ToolLog

REJECTED_FINDSCU = """\
@INFO|Requesting Association
@ERROR|Association Rejected:
@ERROR|Result: Rejected Transient, Source: Service Provider (Presentation Related)
@ERROR|Reason: Local Limit Exceeded
"""
REJECTED_GETSCU = """\
@INFO|Requesting Association
@DEBUG|Association Rejected:
@DEBUG|Result: Rejected Permanent, Source: Service User
@DEBUG|Reason: Called AE Title Not Recognized
@FATAL|Could not negotiate association: DUL Association Rejected
"""
REJECTED_MOVESCU = REJECTED_FINDSCU.replace("ERROR", "FATAL")
REJECTED_ECHOSCU = REJECTED_MOVESCU
NO_CONTEXTS = """\
@INFO|Requesting Association
@FATAL|No Acceptable Presentation Contexts
"""
NO_CONTEXTS_GETSCU = """\
@INFO|Requesting Association
@ERROR|No Acceptable Presentation Contexts
@FATAL|Could not negotiate association: No acceptable Presentation Contexts
"""
ONLY_STORAGE_CONTEXTS_GETSCU = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16370)
@FATAL|No adequate Presentation Contexts for sending C-GET
"""
SILENT = """\
@INFO|Requesting Association
@ERROR|Association Request Failed: 0006:031a DUL network read timeout
"""
SILENT_GETSCU = """\
@INFO|Requesting Association
@DEBUG|Association Request Failed: 0006:031a DUL network read timeout
@FATAL|Could not negotiate association: DUL network read timeout
"""
SILENT_MOVESCU = """\
@INFO|Requesting Association
@FATAL|Association Request Failed:
@FATAL|0006:031a DUL network read timeout
"""
REFUSED = """\
@INFO|Requesting Association
@FATAL|Association Request Failed: 0006:031c TCP Initialization Error: Connection refused
"""
REFUSED_GETSCU = """\
@INFO|Requesting Association
@DEBUG|Association Request Failed: 0006:031c TCP Initialization Error: Connection refused
@FATAL|Could not negotiate association: TCP Initialization Error: Connection refused
"""
SWALLOWED = """\
@INFO|Requesting Association
@FATAL|Association Request Failed: 0006:031c TCP Initialization Error: Operation now in progress (Timeout)
"""
UNKNOWN_HOST = """\
@INFO|Requesting Association
@FATAL|Association Request Failed: 0006:0320 Attempt to connect to unknown host: nowhere.invalid
"""
CLOSED = """\
@INFO|Requesting Association
@FATAL|Association Request Failed: 0006:0317 Peer aborted Association (or never connected)
"""
HTTP_SERVER = """\
@INFO|Requesting Association
@FATAL|Association Request Failed: 0006:0321 Unrecognized PDU type: 48
"""

_FIND = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16370)
@INFO|Sending Find Request
@INFO|Received Find Response 1
"""
FOUND = f"""\
{_FIND}@INFO|Received Final Find Response
@DEBUG|===================== INCOMING DIMSE MESSAGE ====================
@DEBUG|Message Type                  : C-FIND RSP
@DEBUG|Message ID Being Responded To : 1
@DEBUG|Affected SOP Class UID        : FINDStudyRootQueryRetrieveInformationModel
@DEBUG|Data Set                      : none
@DEBUG|DIMSE Status                  : 0x0000: Success: Matching is complete
@DEBUG|======================= END DIMSE MESSAGE =======================
@INFO|Releasing Association
"""
FIND_OUT_OF_RESOURCES = f"""\
{_FIND}@INFO|Received Final Find Response
@DEBUG|===================== INCOMING DIMSE MESSAGE ====================
@DEBUG|Message Type                  : C-FIND RSP
@DEBUG|Message ID Being Responded To : 1
@DEBUG|Affected SOP Class UID        : FINDStudyRootQueryRetrieveInformationModel
@DEBUG|Data Set                      : none
@DEBUG|DIMSE Status                  : 0xa700: Refused: Out of resources
@DEBUG|======================= END DIMSE MESSAGE =======================
@DEBUG|Status Detail:
@DEBUG|
@DEBUG|# Dicom-Data-Set
@DEBUG|# Used TransferSyntax: Little Endian Implicit
@DEBUG|(0000,0902) LO [told so ]                               #   8, 1 ErrorComment
@DEBUG|
@INFO|Releasing Association
"""
FIND_ABORTED = f"""\
{_FIND}@ERROR|Find Failed, file: /var/lib/query.dcm:
@ERROR|0006:0317 Peer aborted Association (or never connected)
@INFO|Peer Aborted Association
"""
FIND_HANGS = f"""\
{_FIND}@ERROR|Find Failed, file: /var/lib/query.dcm:
@ERROR|0006:0207 DIMSE No data available (timeout in non-blocking mode)
@ERROR|Find SCU Failed: 0006:0207 DIMSE No data available (timeout in non-blocking mode)
@INFO|Aborting Association
"""
FIND_GARBAGE = f"""\
{_FIND}@ERROR|Find Failed, file: /var/lib/query.dcm:
@ERROR|0006:020d DIMSE Failed to receive message
@ERROR|0006:020c DIMSE Read PDV failed
@ERROR|0006:0321 Unrecognized PDU type: 93
@ERROR|Find SCU Failed: 0006:020d DIMSE Failed to receive message
@ERROR|0006:020c DIMSE Read PDV failed
@ERROR|0006:0321 Unrecognized PDU type: 93
@INFO|Aborting Association
"""
FIND_RELEASED_BY_PEER = f"""\
{_FIND}@ERROR|Find Failed, file: /var/lib/query.dcm:
@ERROR|0006:0319 DUL Peer Requested Release
@ERROR|Protocol Error: Peer requested release (Aborting)
@INFO|Aborting Association
"""
ECHOED = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16370)
@INFO|Sending Echo Request (MsgID 1)
@INFO|Received Echo Response (Success)
@INFO|Releasing Association
"""
ECHO_FAILED = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16370)
@INFO|Sending Echo Request (MsgID 1)
@INFO|Received Echo Response (Unknown Status: 0xa700)
@DEBUG|Status Detail (should never be any):
@DEBUG|
@DEBUG|# Dicom-Data-Set
@DEBUG|# Used TransferSyntax: Little Endian Implicit
@DEBUG|(0000,0902) LO [told so]                                #   8, 1 ErrorComment
@DEBUG|
@INFO|Releasing Association
"""
GOT_HALF = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16370)
@INFO|Sending C-GET Request
@DEBUG|===================== INCOMING DIMSE MESSAGE ====================
@DEBUG|Message Type                  : C-GET RSP
@DEBUG|Presentation Context ID       : 1
@DEBUG|Message ID Being Responded To : 1
@DEBUG|Affected SOP Class UID        : GETStudyRootQueryRetrieveInformationModel
@DEBUG|Remaining Suboperations       : none
@DEBUG|Completed Suboperations       : 1
@DEBUG|Failed Suboperations          : 1
@DEBUG|Warning Suboperations         : 0
@DEBUG|Data Set                      : present
@DEBUG|DIMSE Status                  : 0xb000: Warning: Sub-operations complete - One or more failures or warnings
@DEBUG|======================= END DIMSE MESSAGE =======================
@WARN|DIMSE status is: Warning: SubOperationsCompleteOneOrMoreFailures
@INFO|Final status report from last C-GET message:
@INFO|  Number of Remaining Suboperations : 0
@INFO|  Number of Completed Suboperations : 1
@INFO|  Number of Failed Suboperations    : 1
@INFO|  Number of Warning Suboperations   : 0
@INFO|Releasing Association
@ERROR|Association Release Failed: 0006:0316 DUL P-Data PDU arrived
@INFO|Aborting Association
"""
GET_ABORTED = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16370)
@INFO|Sending C-GET Request
@ERROR|Failed receiving DIMSE command: 0006:0317 Peer aborted Association (or never connected)
"""
MOVE_UNKNOWN_DESTINATION = """\
@INFO|Requesting Association
@INFO|Association Accepted (Max Send PDV: 16372)
@INFO|Sending Move Request
@WARN|Move response with error status (Refused: MoveDestinationUnknown)
@INFO|Received Final Move Response
@DEBUG|===================== INCOMING DIMSE MESSAGE ====================
@DEBUG|Message Type                  : C-MOVE RSP
@DEBUG|Message ID Being Responded To : 1
@DEBUG|Affected SOP Class UID        : MOVEStudyRootQueryRetrieveInformationModel
@DEBUG|Remaining Suboperations       : none
@DEBUG|Completed Suboperations       : none
@DEBUG|Failed Suboperations          : none
@DEBUG|Warning Suboperations         : none
@DEBUG|Data Set                      : none
@DEBUG|DIMSE Status                  : 0xa801: Refused: Move destination unknown
@DEBUG|======================= END DIMSE MESSAGE =======================
@INFO|Releasing Association
"""


def read(text: str) -> ToolLog:
    """The log of a tool that said this."""
    log = ToolLog()
    for line in text.encode().splitlines():
        log.feed(line)
    return log
