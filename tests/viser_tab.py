"""A browser tab without a browser: speaks viser's messages over a real websocket."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from PIL import Image
from viser import ViserServer
from viser._messages import (
    FileTransferPart,
    FileTransferStart,
    GuiUpdateMessage,
    RemoveSceneNodeMessage,
    SceneNodeClickMessage,
    ViewerCameraMessage,
)
from viser.infra import WebsockClientConnection, WebsockMessageHandler
from viser.transforms import SO3
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

PATIENCE = 180.0
"""Seconds to wait for what has to happen. Only what never happens takes so long; a busy machine may stall meanwhile."""
OF_THE_SERVER = (GuiUpdateMessage, SceneNodeClickMessage, FileTransferStart, FileTransferPart)
"""Messages that the server handles, and not what stands for one tab there."""


class Hearing:
    """What tabs said to a server of this process, and how much of it the server has dealt with, callbacks included.

    viser hands each message to any thread of a pool, so that of two that follow within a millisecond the later may be
    heard first. A person is slower than that. So is a tab with a hearing: it goes on once what it said is dealt with.
    All tabs of the server share one.
    """

    def __init__(self, server: ViserServer) -> None:
        self._server, self._numbers = server._websock_server, itertools.count()
        self._connections: dict[int, WebsockClientConnection] = {}
        self._lock = threading.Lock()
        self._said = self._dealt_with = 0
        self._listen_to(self._server)
        self._server.on_client_connect(self._take_connection)

    @property
    def complete(self) -> bool:
        """Whether all that was said is dealt with."""
        with self._lock:
            return self._said == self._dealt_with

    def say(self, send: Callable[[], None]) -> None:
        """Count what is sent."""
        with self._lock:
            self._said += 1
        send()

    def mark(self) -> str:
        """Send every tab the removal of a scene node of a new name, behind all that it has been sent so far: once among
        what all tabs get, and once among its own."""
        name = f"/mark/{next(self._numbers)}"
        for sender in (self._server, *(self._connections[client] for client in self._server._client_state_from_id)):
            while not self._send_last(sender, RemoveSceneNodeMessage(name)):
                time.sleep(0.01)
        return name

    @staticmethod
    def _send_last(sender: WebsockMessageHandler, message: RemoveSceneNodeMessage) -> bool:
        """What is said in an atomic block waits for its end, in a queue that messages behind it do not pass through."""
        with sender._atomic_lock:
            if sender._queued_messages.empty():
                sender.unsafe_send_message(message)
                return True
        return False

    def _take_connection(self, connection: WebsockClientConnection) -> None:
        self._connections[connection.client_id] = connection
        self._listen_to(connection)

    def _listen_to(self, receiver: WebsockMessageHandler) -> None:
        """Cameras are heard by connections, all else by the server."""
        handlers = receiver._incoming_handlers
        kinds = OF_THE_SERVER if receiver is self._server else (ViewerCameraMessage,)
        for kind in kinds:
            handlers[kind] = [self._noting(handlers[kind])]

    def _noting(self, handlers: list[Callable[[int, Any], None]]) -> Callable[[int, Any], None]:
        def handle(client: int, message: Any) -> None:
            try:
                for handler in handlers:
                    handler(client, message)
            finally:
                with self._lock:
                    self._dealt_with += 1

        return handle


def without_lost_pings(log: str) -> str:
    """What a viewer printed, without websockets' own traces of a ping that fell into a stall of the machine.

    Its version that viser takes logs them and goes on; no picture is lost.
    """
    return re.sub(
        r"keepalive ping failed\nTraceback \(most recent.*?\n[\w.]*(Error|Closed\w*)\b[^\n]*", "", log, flags=re.DOTALL
    )


class Tab:
    """One tab. Widgets are addressed by the label that a person reads.

    What is seen is replaced and never changed, since another thread than the one that looks takes the messages.
    """

    def __init__(self, port: int, aspect: float = 1.5, hearing: Hearing | None = None) -> None:
        self.aspect = aspect
        self.hearing, self.patient = hearing, True
        self.widgets: dict[str, dict[str, Any]] = {}
        self.notifications: list[tuple[str, str]] = []
        self.downloads: dict[str, bytes] = {}
        self.picture: np.ndarray | None = None
        self.pictures = 0
        self.moves = 0  # by the server
        self.position, self.wxyz = (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)
        self.nodes: frozenset[str] = frozenset()
        self._removed: Counter[str] = Counter()
        self._parts: dict[str, dict[str, Any]] = {}
        self._socket = connect(f"ws://127.0.0.1:{port}", max_size=None, compression=None, open_timeout=PATIENCE)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self.look((0.0, 0.0, 0.0))

    def close(self) -> None:
        self.be_heard()
        self._socket.close()
        self._thread.join(timeout=PATIENCE)

    # ------------------------------------------------------------------------------------------- what a person does

    def send(self, kind: str, **fields: Any) -> None:
        self._say(kind, **fields)
        if self.patient:
            self.be_heard()

    def be_heard(self) -> None:
        """Wait until the server has dealt with all that was said, if it is one of this process."""
        if self.hearing is not None:
            self.wait(lambda: self.hearing.complete, "hearing")

    def look(self, position: Sequence[float], wxyz: Sequence[float] | None = None) -> None:
        self._turn(position, wxyz)
        if self.patient:
            self.be_heard()

    def _turn(self, position: Sequence[float], wxyz: Sequence[float] | None = None) -> None:
        self.position = tuple(map(float, position))
        self.wxyz = self.wxyz if wxyz is None else tuple(map(float, wxyz))
        self._say(
            "ViewerCameraMessage", wxyz=self.wxyz, position=self.position, fov=0.9, aspect=self.aspect,
            look_at=(0.0, 0.0, 1.0), up_direction=(0.0, 0.0, 1.0),
        )  # fmt: skip

    def set(self, label: str, value: Any) -> None:
        widget = self._widget(label)
        widget["value"] = value
        self.send("GuiUpdateMessage", id=widget["id"], updates={"value": value})

    def click(self, label: str) -> None:
        self.set(label, True)

    def id_of(self, label: str) -> str:
        return self._widget(label)["id"]

    def upload(self, label: str, name: str, content: bytes, claimed: int | None = None) -> None:
        common = {"source_component_id": self.id_of(label), "transfer_uuid": f"{name}-{time.monotonic_ns()}"}
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

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen; told: {self.notifications[-5:]}"
            time.sleep(0.02)

    def wait_for_picture(self, condition: Callable[[np.ndarray], bool] = lambda _: True) -> np.ndarray:
        """The next picture that arrives and is as wanted; the first one may have been made a while ago."""
        before, found = self.pictures, []

        def came() -> bool:
            if self.pictures > before and condition(self.picture):
                found.append(self.picture)
            return bool(found)

        self.wait(came, "a new picture")
        return found[0]

    def catch_up(self) -> None:
        """Wait until all that the server of this process has sent so far is here."""
        name = self.hearing.mark()
        self.wait(lambda: self._removed[name] == 2, "the latest message")

    # ------------------------------------------------------------------------------------------------------ messages

    def _widget(self, label: str) -> dict[str, Any]:
        for widget in self.widgets.values():
            if widget.get("label") == label and "value" in widget:
                return widget
        raise AssertionError(f"no widget {label}; there are {[w.get('label') for w in self.widgets.values()]}")

    def _say(self, kind: str, **fields: Any) -> None:
        def send() -> None:
            self._socket.send(msgspec.msgpack.encode({"type": kind, **fields}))

        if self.hearing is None:
            send()
        else:
            self.hearing.say(send)

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
            self.nodes |= {message["name"]}
        elif kind == "RemoveSceneNodeMessage":
            self.nodes -= {message["name"]}
            self._removed[message["name"]] += 1
        elif kind.startswith("SetCamera"):
            self._obey(kind, message)

    def _obey(self, kind: str, message: dict[str, Any]) -> None:
        """Move as the server says, and say so, as a browser does."""
        if kind == "SetCameraOrientationMessage":
            self._turn(self.position, message["wxyz"])
        elif kind == "SetCameraPositionMessage":
            self.moves += 1
            self._turn(message["position"])
        elif kind == "SetCameraLookAtMessage":
            forward = np.asarray(message["look_at"]) - self.position
            right = np.cross(forward, (0.0, 0.0, 1.0))
            axes = np.stack([axis / np.linalg.norm(axis) for axis in (right, np.cross(forward, right), forward)], 1)
            self._turn(self.position, SO3.from_matrix(axes).wxyz)

    def _take_widget(self, kind: str, message: dict[str, Any]) -> None:
        if kind.startswith("GuiAdd"):
            self.widgets = {**self.widgets, message["id"]: message}
        elif kind == "GuiUpdateMessage" and message["id"] in self.widgets:
            self.widgets[message["id"]].update(message["updates"])
        elif kind == "GuiRemoveMessage":
            self.widgets = {name: widget for name, widget in self.widgets.items() if name != message["id"]}

    def _take_file(self, kind: str, message: dict[str, Any]) -> None:
        if kind == "FileTransferStart":
            self._parts[message["transfer_uuid"]] = {"start": message, "parts": {}}
        elif kind == "FileTransferPart":
            transfer = self._parts[message["transfer_uuid"]]
            transfer["parts"][message["part"]] = message["content"]
            if len(transfer["parts"]) == transfer["start"]["part_count"]:
                content = b"".join(transfer["parts"][i] for i in sorted(transfer["parts"]))
                self.downloads[transfer["start"]["filename"]] = content
