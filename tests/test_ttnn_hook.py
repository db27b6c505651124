"""The hook where there is no TT-Metal to follow."""

from __future__ import annotations

import pytest

from ttmem import _ttnn_hook

PREFIX = "_ZN4ttnn16device_operation6detail21enqueue_mesh_workloadITkNS0_36DeviceOperationWithMeshDeviceAdapterENS0_"


def test_without_tt_metal_it_says_so_and_changes_nothing() -> None:
    reason = _ttnn_hook.prepare()
    assert reason == "libtt_metal.so is not loaded: import ttnn first"
    assert _ttnn_hook.start() == reason
    status = _ttnn_hook.status()
    assert (status["on"], status["held"], status["slots"]) == (False, 0, 0)
    assert _ttnn_hook.stop() == 0
    assert _ttnn_hook.drain() == []
    assert _ttnn_hook.total_cb(0) is None


def test_a_sink_must_be_the_right_capsule() -> None:
    with pytest.raises(ValueError, match="PyCapsule"):
        _ttnn_hook.release(object())


@pytest.mark.parametrize(
    ("rest", "name"),
    [
        (
            "26MeshDeviceOperationAdapterINS_10operations10index_fill18IndexFillOperationEEEEEvRKNT_",
            "IndexFillOperation",
        ),
        ("26MeshDeviceOperationAdapterINS_4prim22SoftmaxDeviceOperationEEEEEvRKNT_", "SoftmaxDeviceOperation"),
        ("26MeshDeviceOperationAdapterIS4_9OperationE", "Operation"),
        ("26MeshDeviceOperationAdapterI3AddEE", "Add"),
        ("26MeshDeviceOperationAdapterINS_4prim999Cut", ""),
        ("26MeshDeviceOperationAdapterINS_4prim9999999999999999999999CutE", ""),
        ("26MeshDeviceOperationAdapterI", ""),
        ("26MeshDeviceOperationAdapterINS", ""),
        ("no adapter", ""),
    ],
)
def test_an_operation_is_named_by_the_symbol_that_dispatches_it(rest: str, name: str) -> None:
    assert _ttnn_hook.operation_name(PREFIX + rest) == name
