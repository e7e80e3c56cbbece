"""A browser tab without a browser: speaks viser's messages over a real websocket."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from viser import ViserServer
from viser.transforms import SO3
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


SECONDS_TO_HEAR = 30


class Tab:
    """One tab. Widgets are addressed by the label that a person reads.

    viser hands each message to any thread of a pool, so that of two that follow within a millisecond the later may be
    heard first. A person is slower than that. So is a tab that is given the server of this process: it goes on once
    what it said has been heard.
    """

    def __init__(self, port: int, aspect: float = 1.5, server: ViserServer | None = None) -> None:
        self.aspect = aspect
        self._server = server
        self.widgets: dict[str, dict[str, Any]] = {}
        self.notifications: list[tuple[str, str]] = []
        self.downloads: dict[str, bytes] = {}
        self.picture: np.ndarray | None = None
        self.pictures = 0
        self.moves = 0  # by the server
        self.position, self.wxyz = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
        self.nodes: set[str] = set()
        self._parts: dict[str, dict[str, Any]] = {}
        self._socket = connect(f"ws://127.0.0.1:{port}", max_size=None, compression=None)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.look((0.0, 0.0, 0.0))

    def close(self) -> None:
        self._socket.close()
        self._thread.join(timeout=10)

    # ------------------------------------------------------------------------------------------- what a person does

    def send(self, kind: str, **fields: Any) -> None:
        self._socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

    def look(self, position: Sequence[float], wxyz: Sequence[float] | None = None) -> None:
        self.position = tuple(map(float, position))
        self.wxyz = self.wxyz if wxyz is None else tuple(map(float, wxyz))
        self.send(
            "ViewerCameraMessage", wxyz=self.wxyz, position=self.position, fov=0.9, aspect=self.aspect,
            look_at=(0.0, 0.0, 1.0), up_direction=(0.0, 0.0, 1.0),
        )  # fmt: skip

    def set(self, label: str, value: Any) -> None:
        widget = self._widget(label)
        widget["value"] = value
        heard = self._hearing(widget["id"], value)
        self.send("GuiUpdateMessage", id=widget["id"], updates={"value": value})
        self.wait(heard, f"hearing of {label} = {value!r}", SECONDS_TO_HEAR)

    def click(self, label: str) -> None:
        self.set(label, True)

    def upload(self, label: str, name: str, content: bytes, claimed: int | None = None) -> None:
        common = {"source_component_id": self._widget(label)["id"], "transfer_uuid": f"{name}-{time.monotonic_ns()}"}
        size = len(content) if claimed is None else claimed
        self.send("FileTransferStart", **common, filename=name, mime_type="image/jpeg", part_count=1, size_bytes=size)
        self.send("FileTransferPart", **common, part=0, content=content)

    # ------------------------------------------------------------------------------------------- what a person sees

    def has(self, label: str) -> bool:
        return any(widget.get("label") == label for widget in self.widgets.values())

    def value(self, label: str) -> Any:
        return self._widget(label)["value"]

    def options(self, label: str) -> Sequence[str]:
        return self._widget(label)["options"]

    def visible(self, label: str) -> bool:
        return self._widget(label).get("visible", True)

    def texts(self) -> str:
        return "\n".join(widget.get("markdown") or "" for widget in self.widgets.values())

    def said(self, words: str) -> bool:
        return any(words in f"{title} {body}" for title, body in self.notifications)

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen; told: {self.notifications[-5:]}"
            time.sleep(0.05)

    def wait_for_picture(self, seconds: float = 60) -> np.ndarray:
        """The next picture that arrives."""
        before = self.pictures
        self.wait(lambda: self.pictures > before, "a new picture", seconds)
        return self.picture

    # ------------------------------------------------------------------------------------------------------ messages

    def _widget(self, label: str) -> dict[str, Any]:
        for widget in self.widgets.values():
            if widget.get("label") == label and "value" in widget:
                return widget
        raise AssertionError(f"no widget {label}; there are {[w.get('label') for w in self.widgets.values()]}")

    def _hearing(self, widget: str, value: Any) -> Callable[[], bool]:
        """Whether the server has heard of a change that is about to be sent."""
        handles = {} if self._server is None else self._server.gui._gui_input_handle_from_id
        if widget not in handles:
            return lambda: True
        state = handles[widget]._impl
        before = state.update_timestamp
        unchanged = not state.is_button and state.value == value  # which is no news to viser
        return lambda: unchanged or state.update_timestamp != before or widget not in handles

    def _listen(self) -> None:
        with contextlib.suppress(ConnectionClosed, OSError):
            while True:
                for message in msgspec.msgpack.decode(self._socket.recv()):
                    self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind.startswith("Gui"):
            self._take_widget(kind, message)
        elif kind.startswith("FileTransfer"):
            self._take_file(kind, message)
        elif kind == "NotificationMessage" and message["mode"] == "show":
            self.notifications.append((message["title"], message["body"]))
        elif kind == "BackgroundImageMessage":
            self.picture = np.asarray(Image.open(io.BytesIO(message["rgb_bytes"])).convert("RGB"))
            self.pictures += 1
        elif kind in ("CameraFrustumMessage", "GaussianSplatsMessage"):
            self.nodes.add(message["name"])
        elif kind == "RemoveSceneNodeMessage":
            self.nodes.discard(message["name"])
        elif kind.startswith("SetCamera"):
            self._obey(kind, message)

    def _obey(self, kind: str, message: dict[str, Any]) -> None:
        """Move as the server says, and say so, as a browser does."""
        if kind == "SetCameraOrientationMessage":
            self.look(self.position, message["wxyz"])
        elif kind == "SetCameraPositionMessage":
            self.moves += 1
            self.look(message["position"])
        elif kind == "SetCameraLookAtMessage":
            forward = np.asarray(message["look_at"]) - self.position
            right = np.cross(forward, (0.0, 0.0, 1.0))
            axes = np.stack([axis / np.linalg.norm(axis) for axis in (right, np.cross(forward, right), forward)], 1)
            self.look(self.position, SO3.from_matrix(axes).wxyz)

    def _take_widget(self, kind: str, message: dict[str, Any]) -> None:
        if kind.startswith("GuiAdd"):
            self.widgets[message["id"]] = message
        elif kind == "GuiUpdateMessage" and message["id"] in self.widgets:
            self.widgets[message["id"]].update(message["updates"])
        elif kind == "GuiRemoveMessage":
            self.widgets.pop(message["id"], None)

    def _take_file(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "FileTransferStart":
            self._parts[message["transfer_uuid"]] = {"start": message, "parts": {}}
        elif kind == "FileTransferPart":
            transfer = self._parts[message["transfer_uuid"]]
            transfer["parts"][message["part"]] = message["content"]
            if len(transfer["parts"]) == transfer["start"]["part_count"]:
                content = b"".join(transfer["parts"][i] for i in sorted(transfer["parts"]))
                self.downloads[transfer["start"]["filename"]] = content
