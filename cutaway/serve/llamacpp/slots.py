"""/slots of llama-server: what a slot read last is saved into a file, restored from it, or erased."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from pydantic import StrictStr
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from cutaway.serve.api_error import APIError
from cutaway.serve.json_body import json_response
from cutaway.serve.operations.request_record import record_of
from cutaway.serve.routes import Route, beside, query_of
from cutaway.serve.service import Service
from cutaway.serve.validation import StrictModel

ACTIONS = ("save", "restore", "erase")


class SlotFile(StrictModel):
    """The file to save into or to restore from; erasing needs none."""

    EMPTY: ClassVar = True
    model: StrictStr | None = None
    filename: StrictStr = ""


def act(service: Service, body: SlotFile, http: HTTPRequest) -> Response:
    """Save, restore or erase the text of a slot (`action`), in a file of the server's --slot-save-path."""
    action, number = query_of(http)["action"], http.path_params["id"]
    places = service.limits.max_sequences
    if not (number.isascii() and number.isdecimal() and len(number) < 6 and int(number) < places):
        raise APIError(
            400, f"There is no slot {number[:40]!r}: this server has 0 to {places - 1}", param="id"
        )
    if action not in ACTIONS:
        raise APIError(400, "action is none of save, restore and erase", param="action")
    slots, scheduler, scope = service.slots, service.decoder, record_of(http).scope
    if slots is None:
        text = "This server keeps no slots in files: start it with --slot-save-path FOLDER"
        raise APIError(501, text, type="not_supported_error", code="not_supported")
    engine: Any = service.engine_of(body.model) or scheduler.engine
    slot, began = int(number), time.perf_counter()
    if action == "erase":
        return json_response({"id_slot": slot, "n_erased": slots.erase(scheduler, scope, slot)})
    if action == "save":
        count, nbytes = slots.save(scheduler, scope, slot, body.filename)
        found = {"n_saved": count, "n_written": nbytes}
    else:
        count, nbytes = slots.restore(scheduler, scope, slot, body.filename, engine)
        found = {"n_restored": count, "n_read": nbytes}
    spent = {f"{action}_ms": 1e3 * (time.perf_counter() - began)}
    return json_response({"id_slot": slot, "filename": body.filename} | found | {"timings": spent})


ROUTES = [Route("POST", "/slots/{id}", ("chat",), beside(act), SlotFile, query={"action": (str, "")})]
