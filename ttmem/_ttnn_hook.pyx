"""The compiled hook that follows TT-Metal in this process; :mod:`ttmem.ttnn` is what users call.

Thread safety: events may come on any thread at any time; `start` and `stop` must not run on two threads at once.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport uint32_t, uint64_t

from ttmem._hook_events cimport (
    TTM_BUFFER_ALLOCATE,
    TTM_BUFFER_FREE,
    TTM_PROGRAM_ADD,
    TTM_PROGRAM_DISPATCH,
    TTM_PROGRAM_REMOVE,
    TTM_SINK_CAPSULE,
    TTM_TRACE,
    ttm_cb_record,
    ttm_core_range,
    ttm_event,
    ttm_hook_sink,
    ttm_log,
    ttm_log_free,
)


cdef extern from "_hook.h" nogil:
    ctypedef struct ttm_target:
        const char *symbol
        uint32_t slots
        uint32_t required

    ctypedef struct ttm_slots:
        uint32_t slot_count

    ctypedef struct ttm_hook_state:
        uint32_t on
        uint32_t installed
        char *reason
        ttm_slots slots
        uint64_t events
        uint64_t lost
        uint64_t unknown_devices
        uint64_t unknown_dispatches
        uint64_t blocked
        uint64_t layouts
        uint64_t registrations

    ttm_hook_state ttm_hook
    ttm_target ttm_targets[]
    enum:
        T_COUNT
    int ttm_hook_prepare()
    int ttm_hook_start()
    uint32_t ttm_hook_stop()
    uint32_t ttm_slots_held(const ttm_slots *slots)
    ttm_log ttm_hook_take_log()
    void ttm_hook_hold()
    uint64_t ttm_hook_release(const ttm_hook_sink *sink, ttm_log *earlier)
    uint64_t ttm_hook_total_cb(int chip)
    void ttm_operation_name(const char *symbol, char *name)


cdef tuple KINDS = ("circular_buffer", "dataflow_buffer", "scratchpad")
cdef tuple ACTIONS = ("begin", "end", "replay", "release")


cdef str _reason():
    return ttm_hook.reason.decode("utf-8", "replace")


def prepare() -> str:
    """Check that this process has a TT-Metal that the hook can follow, and change nothing.

    Returns:
        An empty text, or the reason why not.
    """
    return _reason() if ttm_hook_prepare() else ""


def start() -> str:
    """Redirect TT-Metal's calls and keep the events, for :func:`drain` or until :func:`release`.

    Returns:
        An empty text, or the reason why nothing was redirected.
    """
    return _reason() if ttm_hook_start() else ""


def stop() -> int:
    """Put TT-Metal's calls back; harmless if nothing was redirected.

    Returns:
        How many slots were left alone because somebody else redirected them since: 0 unless another tool did.
    """
    return ttm_hook_stop()


def status() -> dict[str, object]:
    """Return what the hook knows of itself.

    Returns:
        `on`; `reason` (why it switched itself off); `slots` redirected and `held` now; `calls` (slots by mangled name); counts of
        `events`, `layouts`, `registrations`, `lost` (no memory), `unknown_devices`, `unknown_dispatches` (of programs laid out
        before the start) and `blocked` (pretended in a NO_DISPATCH capture).
    """
    return {
        "on": bool(ttm_hook.on),
        "reason": _reason(),
        "slots": ttm_hook.slots.slot_count,
        "held": ttm_slots_held(&ttm_hook.slots) if ttm_hook.installed else 0,
        "calls": {ttm_targets[i].symbol.decode(): ttm_targets[i].slots for i in range(T_COUNT)},
        "events": ttm_hook.events,
        "layouts": ttm_hook.layouts,
        "registrations": ttm_hook.registrations,
        "lost": ttm_hook.lost,
        "unknown_devices": ttm_hook.unknown_devices,
        "unknown_dispatches": ttm_hook.unknown_dispatches,
        "blocked": ttm_hook.blocked,
    }


def total_cb(chip: int) -> int | None:
    """Return the CB bytes that TT-Metal itself counts on an open chip, or None where it cannot be asked."""
    cdef uint64_t total = ttm_hook_total_cb(chip)
    return None if total == 0xFFFFFFFFFFFFFFFF else total


def operation_name(symbol: str) -> str:
    """Return the device operation's class name in the mangled name of an `enqueue_mesh_workload`, else an empty text."""
    cdef char name[96]
    cdef bytes text = symbol.encode()
    ttm_operation_name(text, name)
    return name.decode()


cdef list _footprint(const ttm_log *log, const ttm_event *event):
    cdef const ttm_cb_record *cb
    cdef const ttm_core_range *area
    cdef uint32_t i, r
    cdef list out = []
    for i in range(event.cb_count):
        cb = <const ttm_cb_record *>log.cbs.data + event.first_cb + i
        ranges = []
        for r in range(cb.range_count):
            area = <const ttm_core_range *>log.ranges.data + cb.first_range + r
            ranges.append((area.start_x, area.start_y, area.end_x, area.end_y))
        out.append((KINDS[cb.kind], cb.address, cb.size, bool(cb.globally_allocated), tuple(ranges)))
    return out


cdef class Events:
    """Events that the hook kept, oldest first; made by :func:`take`."""

    cdef ttm_log log

    def __init__(self):
        raise TypeError("made by take()")

    def __dealloc__(self):
        ttm_log_free(&self.log)

    def __len__(self):
        return self.log.events.count

    def told(self) -> list[tuple]:
        """Return them as tuples.

        Returns:
            ``(kind, chip, ...)`` each: ``("buffer_allocate" or "buffer_free", chip, buffer id, type, size, address, size per
            bank)``, ``("program_add", chip, program id, name, [(kind, address, size, globally allocated, ((x, y, x, y), ...)),
            ...])``, ``("program_remove" or "program_dispatch", chip, program id, name)``, ``("trace", chip, trace id, action)``,
            ``("device_close", chip)``.

        Raises:
            MemoryError: events were dropped, since there was no room for them.
        """
        cdef const ttm_event *event
        cdef size_t i
        cdef list out = []
        if self.log.dropped:
            raise MemoryError(f"the hook dropped {self.log.dropped} events")
        for i in range(self.log.events.count):
            event = <const ttm_event *>self.log.events.data + i
            if event.kind == TTM_BUFFER_ALLOCATE or event.kind == TTM_BUFFER_FREE:
                out.append((
                    "buffer_allocate" if event.kind == TTM_BUFFER_ALLOCATE else "buffer_free", event.chip, event.buffer.id,
                    event.buffer.type, event.buffer.size, event.buffer.address, event.buffer.size_per_bank,
                ))
            elif event.kind == TTM_PROGRAM_ADD:
                name = event.program.name.decode("utf-8", "replace")
                out.append(("program_add", event.chip, event.program.id, name, _footprint(&self.log, event)))
            elif event.kind == TTM_PROGRAM_REMOVE or event.kind == TTM_PROGRAM_DISPATCH:
                out.append((
                    "program_remove" if event.kind == TTM_PROGRAM_REMOVE else "program_dispatch", event.chip, event.program.id,
                    event.program.name.decode("utf-8", "replace"),
                ))
            elif event.kind != TTM_TRACE:
                out.append(("device_close", event.chip))
            else:
                out.append(("trace", event.chip, event.program.id, ACTIONS[event.action]))
        return out


def take() -> Events:
    """Take the events that were kept."""
    cdef Events events = Events.__new__(Events)
    events.log = ttm_hook_take_log()
    return events


def drain() -> list[tuple]:
    """Take the events that were kept as tuples; see :meth:`Events.told`."""
    return take().told()


def hold() -> None:
    """Keep events from now on; when it returns, no function of a sink runs any more."""
    ttm_hook_hold()


def release(sink: object, earlier: Events | None = None) -> None:
    """Give a sink all events that were kept, and from now on each at once.

    Args:
        sink: a capsule that holds a `ttm_hook_sink`, as `_ttnn_feed.sink` does.
        earlier: events that were taken; they come first.

    Raises:
        MemoryError: events were dropped, since there was no room for them; none was given.
    """
    cdef const ttm_hook_sink *native = <const ttm_hook_sink *>PyCapsule_GetPointer(sink, TTM_SINK_CAPSULE)
    cdef ttm_log *log = NULL if earlier is None else &earlier.log
    cdef uint64_t dropped = ttm_hook_release(native, log)
    if dropped:
        raise MemoryError(f"the hook dropped {dropped} events")
