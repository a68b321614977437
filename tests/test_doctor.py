"""The doctor tells the truth about what is here, and copes with anything that is not."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import sgp_fast
from sgp_fast import doctor
from sgp_fast._optional import LIBRARIES, require


def test_reports_what_is_installed_here() -> None:
    report = doctor.report()
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["numpy"] == np.__version__
    assert report["versions"]["sgp_fast"] == sgp_fast.__version__
    assert len(report["gpus"]) == torch.cuda.device_count()
    assert report["cpu"]["torch_threads"] == torch.get_num_threads()
    assert report["torch_error"] is None
    json.dumps(report)
    text = doctor.format_report(report)
    assert torch.__version__ in text and torch.backends.cpu.get_cpu_capability() in text


def test_backends_are_those_that_can_be_chosen() -> None:
    report = doctor.report()
    assert set(report["backends"]) == {"eager", "compiled", "fused"}
    assert report["backends"]["eager"] is None, "plain PyTorch runs everywhere"
    text = doctor.format_report(report)
    for why in report["backends"].values():
        assert why is None or (why and why in text)


def test_an_absent_library_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise doctor.PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", absent)
    text = doctor.format_report(doctor.report())
    for library in LIBRARIES:
        assert f'pip install "sgp-fast[{library.extra}]"' in text
    assert "pip install --no-deps d4rl==1.1" in text


def test_a_broken_torch_is_a_line_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> ModuleType:
        raise OSError(f"{name}.so:\n undefined symbol")

    monkeypatch.setattr(doctor, "import_module", broken)
    report = doctor.report()
    assert report["torch_error"] == "OSError: torch.so: undefined symbol"
    assert report["gpus"] == []
    assert all("undefined symbol" in why for why in report["backends"].values())
    assert "does not import" in doctor.format_report(report)


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = SimpleNamespace(name="Some GPU", total_memory=8 * 2**30, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    assert doctor._gpus(torch) == [{"name": "Some GPU", "memory": 8 * 2**30, "capability": "9.0"}]


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    report = doctor.report()
    assert report["compiler"] is None
    assert "none found" in doctor.format_report(report)


def test_require_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'h5py, which is not installed; run: pip install "sgp-fast\[data\]"'):
        require("h5py", extra="data")
    assert require("json.decoder", extra="data") is sys.modules["json.decoder"]


def test_require_tells_a_broken_library_from_an_absent_one(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "needs_more.py").write_text("import surely_not_here\n")
    (tmp_path / "is_broken.py").write_text("from json import surely_not_here\n")
    with pytest.raises(ImportError, match="needs_more is installed but needs surely_not_here"):
        require("needs_more", extra="data")
    with pytest.raises(ImportError, match="is_broken is installed but does not import"):
        require("is_broken", extra="data")
