"""TensorBoard events of one series of numbers, written at once and in order."""

import time
from pathlib import Path
from typing import Any


class EventFile:
    """A file of scalars in TensorBoard's format.

    tensorboardX's own `SummaryWriter` hands events to a thread, which dies of a full disk and leaves its caller
    waiting forever; this one writes them itself and raises.

    Args:
        folder: where; several files in one folder are one series for TensorBoard.
        purge_from: TensorBoard forgets what earlier files hold of this step and later ones.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        # Imported here: it costs most of a second, and runs without events need not pay for it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        # Files are named by seconds; a run that is continued within one must not overwrite its events.
        number = len(list(folder.iterdir()))
        self._file: Any = EventsWriter(str(folder / "events"), filename_suffix=f".{number}")
        if purge_from is not None:
            start = SessionLog(status=SessionLog.START)
            self._file.write_event(Event(wall_time=time.time(), step=purge_from, session_log=start))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes one number for each key."""
        from tensorboardX.summary import scalar

        for key, value in numbers.items():
            event = self._event(wall_time=time.time(), step=step, summary=scalar(key, value))
            self._file.write_event(event)

    def flush(self) -> None:
        """Brings everything to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Brings everything to the disk and closes the file; closing twice does no harm."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
