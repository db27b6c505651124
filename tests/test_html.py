"""The HTML page: one safe file, whose figures in a real browser equal the JSON it was made of."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import random
import re
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import chromium
import pytest
from made_devices import TAKEN_NS, eight, n150, p150, stale, thirty_two, tt_metal

import ttmem
from ttmem.cli.dump import main
from ttmem.cli.page import PageFile
from ttmem.dumps import Dump
from ttmem.recording import RecordingWriter
from ttmem.units import format_bytes, format_exact
from ttmem.views.dump import used_l1
from ttmem.views.explanation import explain_figures, render_explanation
from ttmem.views.heat import short_size
from ttmem.views.html import CORE_COLUMNS, render_html
from ttmem.views.notes import notes
from ttmem.views.text import Screen, percent
from ttmem.views.timeline import Timeline, timeline_of

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`{{7*7}}\u2028<!--"


def details_of(device: dict[str, Any]) -> dict[tuple[int, int], dict[str, Any]]:
    """Ranges that fit the figures of the cores: the CBs in two pieces, a buffer at the top."""
    found = {}
    for core in device["cores"] or ():
        end, size = core["cb_region_end"], core["cb_physical_bytes"]
        low = core["l1_lowest_address"]
        found[core["x"], core["y"]] = {
            "cb_ranges": [[end - size, end - size // 2], [end - size // 2, end]] if size else [],
            "l1_ranges": [[low, low + core["l1_used_bytes"]]] if core["l1_used_bytes"] else [],
        }
    return found


def page(*devices: dict[str, Any], **options: Any) -> str:
    details = options.pop("core_details", [details_of(device) for device in devices])
    return render_html(devices, taken_ns=TAKEN_NS, host=options.pop("host", "lab-7"), core_details=details, **options)


def recorded(count: int, *, devices: int = 1) -> Timeline:
    return timeline_of(moments(count, devices=devices))


def moments(count: int, *, devices: int = 1) -> list[dict[str, Any]]:
    dumps = []
    for i in range(count):
        made = [n150(number) for number in range(devices)]
        for device in made:
            device["memory"]["cb"]["physical_bytes"] = 65536 * (i % 100)
            device["cores"] = []
        dumps.append({"schema": 1, "host": "lab-7", "taken_ns": TAKEN_NS + i * 10_000_000, "devices": made})
    return dumps


class Page(HTMLParser):
    """What a browser's parser finds: elements, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.scripts[-1] += data


def data_of(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Page(text).scripts[0])
    return found


def test_the_page_is_one_file_without_addresses() -> None:
    text = page(n150(), p150(1), timeline=recorded(5))
    for tag, attributes in Page(text).elements:
        assert tag not in ("link", "img", "iframe", "object", "embed") or attributes.get("href") == "data:,", tag
        for name in ("src", "href", "srcset", "action", "poster"):
            assert not re.match(r"\s*(https?:)?//", attributes.get(name) or ""), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text


def test_the_policy_lets_only_the_pages_own_script_run() -> None:
    text = page(n150())
    (policy,) = (a["content"] for _, a in Page(text).elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(Page(text).scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_data_on_the_page_is_the_json() -> None:
    device = n150()
    data = data_of(page(device))
    (shown,) = data["devices"]
    for key in ("device_id", "asic_id", "arch", "state", "grid", "memory", "l1_accounting", "processes"):
        assert shown[key] == device[key]
    cores = [dict(zip(data["core_columns"], row, strict=True)) for row in shown["core_rows"]]
    assert cores == [{name: core[name] for name in CORE_COLUMNS} for core in device["cores"]]
    assert [row[1] for row in shown["program_rows"]] == [program["name"] for program in device["programs"]]
    assert shown["total_l1_bytes"] == used_l1(device)
    maps = shown["maps"]
    for core, ranges in details_of(device).items():
        cb, l1 = maps["cores"][f"{core[0]},{core[1]}"]
        assert maps["lists"][cb] == ranges["cb_ranges"]
        assert maps["lists"][l1] == ranges["l1_ranges"]


def test_names_of_others_stay_text() -> None:
    device = n150(warnings=[EVIL], arch=EVIL)
    device["processes"][0]["name"] = device["processes"][0]["user"] = EVIL
    device["programs"][0]["name"] = EVIL
    text = page(device, host=EVIL)
    assert len(Page(text).scripts) == 2
    assert not [tag for tag, _ in Page(text).elements if tag == "img"]
    assert "49" not in (re.search(r"<title>(.*?)</title>", text) or [""])[0]
    assert data_of(text)["devices"][0]["program_rows"][0][1] == EVIL


def test_names_that_are_no_unicode_can_be_written(tmp_path: Path) -> None:
    device = n150()
    device["processes"][0]["name"] = "py\udcff"
    (tmp_path / "page.html").write_text(page(device, host="h\udcff"), encoding="utf-8")


def galaxy() -> list[dict[str, Any]]:
    """32 chips of 140 cores, all cores different, with as many programs as the contract lists."""
    devices = []
    for number in range(32):
        device = p150(number)
        device["grid"] = {"x": 14, "y": 10}
        first = device["cores"][0]
        device["cores"] = [
            {
                **first,
                "x": x,
                "y": y,
                "cb_region_end": 111488 + 1600 * (number + x * y),
                "cb_physical_bytes": 1600 * x * y,
            }
            for y in range(10)
            for x in range(14)
        ]
        device["programs"] = [
            {
                "program_id": i,
                "name": f"ttnn::operations::matmul::program_{i}",
                "num_cores": 140,
                "cb_bytes_per_core": 400_000 + i,
                "cb_region_end": 511_488 + i,
                "count": 3,
                "pid": 100_000 + number,
            }
            for i in range(1024)
        ]
        devices.append(device)
    return devices


def galaxy_details() -> list[dict[tuple[int, int], dict[str, Any]]]:
    """Eight CB ranges and four buffers on each core; every row of cores of every chip has lists of its own."""
    return [
        {
            (x, y): {
                "cb_ranges": [[111488 + number + y + 65536 * i, 151488 + number + y + 65536 * i] for i in range(8)],
                "l1_ranges": [[1000000 + number + 100000 * i, 1050000 + y + 100000 * i] for i in range(4)],
            }
            for y in range(10)
            for x in range(14)
        }
        for number in range(32)
    ]


def test_32_devices_of_140_cores_stay_under_3_mb() -> None:
    text = page(*galaxy(), core_details=galaxy_details(), timeline=recorded(1000, devices=32))
    assert len(text.encode()) < 3_000_000
    (shown, *_) = data_of(text)["devices"]
    assert len(shown["core_rows"]) == 140
    assert len(shown["program_rows"]) + shown["program_rows_hidden"] == 1024 + 3


def test_a_recording_of_32_devices_that_are_never_alike_stays_under_3_mb() -> None:
    dice = random.Random(7)
    timeline = Timeline()
    for i in range(2000):
        made = [n150(number) for number in range(32)]
        for device in made:
            for name, figures in device["memory"].items():
                figures["physical_bytes" if name == "cb" else "used_bytes"] = dice.randrange(10**9)
            device["memory"]["cb"]["resident_bytes"] = dice.randrange(10**9)
            device["l1_accounting"]["cb_bytes"] = dice.randrange(10**9)
        timeline.add(TAKEN_NS + i * 100_000_003, made)
    text = page(*galaxy(), core_details=galaxy_details(), timeline=timeline)
    assert len(text.encode()) < 3_000_000


def test_unknown_devices_and_no_devices_make_a_page() -> None:
    assert data_of(page(tt_metal()))["devices"][0]["core_rows"] is None
    assert data_of(page())["devices"] == []
    assert data_of(render_html([n150()], taken_ns=TAKEN_NS, host="x"))["devices"][0]["maps"] is None


def test_the_same_devices_make_the_same_page() -> None:
    assert page(n150()) == page(n150())


def test_the_figures_are_explained_with_the_devices_own_numbers() -> None:
    device = n150()
    said = " ".join(explain_figures(device))
    assert "(40 now)" in said
    assert format_bytes(device["memory"]["cb"]["peak_bytes"]) in said
    assert format_bytes(device["memory"]["kernel"]["persistent_bytes"]) in said
    assert format_bytes(device["l1_accounting"]["free_bytes"]) in said
    assert "0.2 MiB is normal" in said


def test_devices_of_which_the_same_is_true_share_the_explanation() -> None:
    text = render_explanation([n150(i) for i in range(4)] + [tt_metal(7)], Screen(width=80))
    heads = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert heads == ["Devices 0-3:", "Device 7:"]
    assert all(len(line) <= 80 for line in text.splitlines())


def test_what_is_unknown_is_not_explained_away() -> None:
    (said,) = explain_figures(tt_metal())
    assert "cannot be told" in said


# In a real browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Chromium]:
    if chromium.BINARY is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    made = chromium.Chromium(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def show(browser: chromium.Chromium, tmp_path: Path) -> Any:
    """Open a page from the disk; it may ask for nothing else and complain of nothing."""

    def open_page(text: str, **options: Any) -> chromium.Chromium:
        path = tmp_path / "page.html"
        path.write_text(text, encoding="utf-8")
        browser.open(path, **options)
        assert browser.run("document.documentElement.dataset.ready") == "1", browser.errors
        return browser

    yield open_page
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith(("file:", "data:"))] == []


def text_of(browser: chromium.Chromium, selector: str = "main") -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)}).innerText"))


MEMORY = (
    ("DRAM", "dram", "used_bytes"),
    ("L1", "l1", "used_bytes"),
    ("CB", "cb", "physical_bytes"),
    ("Kernels", "kernel", "used_bytes"),
    ("L1 Small", "l1_small", "used_bytes"),
    ("Trace", "trace", "used_bytes"),
)


@pytest.mark.parametrize("make", [n150, p150, stale, tt_metal])
def test_the_browser_shows_the_figures_of_the_json(show: Any, make: Any) -> None:
    device = make()
    browser = show(page(device))
    for label, kind, figure in MEMORY:
        got = browser.run(f"document.querySelector('[data-label=\"{label}\"] .value').textContent")
        assert got == format_bytes(device["memory"][kind][figure]), label
    shown = text_of(browser)
    for note in notes(device):
        assert note.text in shown
    for sentence in explain_figures(device):
        assert sentence in shown
    for process in device["processes"] or ():
        assert str(process["pid"]) in shown
    account = device["l1_accounting"]
    for name, key in (
        ("Reserved", "reserved"),
        ("CB", "cb"),
        ("Overlap", "overlap"),
        ("Free", "free"),
        ("Capacity", "total"),
    ):
        if account["total_bytes"] is not None:
            row = text_of(browser, f'[data-part="{name}"]')
            assert format_exact(account[f"{key}_bytes"]) in row, name


@pytest.mark.parametrize(
    "metric", ["cb_physical_bytes", "cb_resident_bytes", "cb_peak_bytes", "l1_used_bytes", "headroom_bytes"]
)
def test_the_heat_map_holds_every_core_of_the_json(show: Any, metric: str) -> None:
    device = n150()
    browser = show(page(device))
    browser.click(f'[data-metric="{metric}"]')
    got = browser.run("[...document.querySelectorAll('rect.core')].map(r => [r.dataset.core, Number(r.dataset.value)])")
    assert got == [[f"{core['x']},{core['y']}", core[metric]] for core in device["cores"]]


def test_the_heat_map_rounds_as_the_terminal_does(show: Any) -> None:
    sizes = (512, 1536, 2560, 107008, -512, -1536, -2560, 511)
    browser = show(page(n150(cores=[{**n150()["cores"][x], "headroom_bytes": size} for x, size in enumerate(sizes)])))
    browser.click('[data-metric="headroom_bytes"]')
    numbers = browser.run("[...document.querySelectorAll('rect.core + text')].map(t => t.textContent)")
    assert numbers == [short_size(size, 1024) for size in sizes]


def test_hovering_a_core_tells_its_figures(show: Any) -> None:
    device = n150()
    browser = show(page(device))
    browser.hover('rect.core[data-core="2,6"]')
    said = text_of(browser, "#tip")
    core = next(core for core in device["cores"] if (core["x"], core["y"]) == (2, 6))
    assert "Core 2,6" in said
    assert format_bytes(core["cb_physical_bytes"]) in said
    assert format_bytes(core["headroom_bytes"]) in said


def test_a_click_on_a_core_opens_its_address_map(show: Any) -> None:
    device = n150()
    browser = show(page(device))
    assert "core 3,4" in text_of(browser, "#map-title"), "the core with the least headroom is first"
    browser.click('rect.core[data-core="1,6"]')
    assert "core 1,6" in text_of(browser, "#map-title")
    core = next(core for core in device["cores"] if (core["x"], core["y"]) == (1, 6))
    assert text_of(browser, "#headroom") == format_bytes(core["headroom_bytes"])
    drawn = browser.run("[...document.querySelectorAll('svg.map rect.f-buffers')].map(r => Number(r.dataset.begin))")
    assert core["l1_lowest_address"] in drawn
    assert "core=1,6" in browser.run("location.hash")


def test_arrow_keys_move_the_selection_to_the_edge(show: Any) -> None:
    browser = show(page(n150()))
    browser.click('rect.core[data-core="6,7"]')
    browser.run("document.querySelector('#heat svg').focus()")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp"):
        browser.press(key)
    assert "core 7,6" in text_of(browser, "#map-title")


def test_the_address_map_zooms_to_the_gap_and_back(show: Any) -> None:
    browser = show(page(n150()))
    label = "document.querySelector('svg.map').getAttribute('aria-label')"
    whole = browser.run(label)
    browser.click('[data-zoom="Gap"]')
    assert browser.run(label) != whole
    browser.click('[data-zoom="All"]')
    assert browser.run(label) == whole


def test_a_link_leads_to_a_device_without_a_number(show: Any) -> None:
    found = [n150(), *({**n150(), "device_id": None, "asic_id": asic_id} for asic_id in ("0x5", "0x6"))]
    browser = show(page(*found), anchor="#device=0x6")
    assert "asic 0x6" in text_of(browser, ".device-head")
    browser.click('rect.core[data-core="1,6"]')
    assert "device=0x6&core=1,6" in browser.run("location.hash")


def test_a_buffer_without_a_name_is_counted_beside_one_with(show: Any) -> None:
    device = n150()
    row = {"buffer_type": "L1", "size_bytes": 64 * 4096, "address": 1400000, "size_per_bank": 4096, "num_cores": 64}
    details = {(x, y): {"cb_ranges": [], "l1_ranges": [[1400000, 1404096]]} for x in range(8) for y in range(8)}
    rows = [{**row, "name": "weights"}, {**row, "name": ""}]
    browser = show(page(device, core_details=[details], buffers=[rows]), anchor="#device=0&core=0,0")
    assert "L1 buffer: weights and 1 more" in text_of(browser, "#map")


def test_hovering_a_range_names_the_programs_behind_it_largest_first(show: Any) -> None:
    device = n150()
    everywhere = {"core_ranges": "{[0-0 - 7-7]}", "kind": "circular_buffer"}
    device["programs"] = [
        {
            **device["programs"][0],
            "name": f"op<{i}>",
            "count": 1,
            "program_id": i,
            "circular_buffers": [{"address": 105664, "size": 400_000 + i % 2, **everywhere}],
        }
        for i in range(9)
    ]
    details = {(0, 0): {"cb_ranges": [[105664, 505665]], "l1_ranges": []}}
    browser = show(page(device, core_details=[details]), anchor="#device=0&core=0,0")
    browser.hover('rect.range[data-part="cb"]')
    said = text_of(browser, "#tip")
    assert said.index("op<1>") < said.index("op<7>") < said.index("op<0>")
    assert "and 3 more" in said
    assert "CB: op<1> and 8 more" in text_of(browser, "#map")


def test_an_overlap_is_drawn_where_both_lie(show: Any) -> None:
    browser = show(page(n150()))
    drawn = browser.run(
        "[...document.querySelectorAll('svg.map rect.f-overlap')].map(r => [+r.dataset.begin, +r.dataset.end])"
    )
    core = next(core for core in n150()["cores"] if (core["x"], core["y"]) == (3, 4))
    assert drawn == [[core["l1_lowest_address"], core["cb_region_end"]]]


def test_a_row_of_the_overview_opens_its_device(show: Any) -> None:
    devices = eight()
    browser = show(page(*devices))
    assert browser.run("document.querySelectorAll('tr.pick').length") == 8
    browser.click('tr.pick[data-device="5"]')
    assert text_of(browser, "#device h2") == "Device 5"
    assert "stale" in text_of(browser, "#device .chip")
    assert browser.run("document.querySelector('tr.pick[aria-selected=true]').dataset.device") == "5"


def test_a_link_leads_to_device_core_and_figure(show: Any) -> None:
    browser = show(page(*eight()), anchor="#device=2&core=4,1&figure=headroom_bytes")
    assert text_of(browser, "#device h2") == "Device 2"
    assert "core 4,1" in text_of(browser, "#map-title")
    assert browser.run("document.querySelector('[data-metric=headroom_bytes]').ariaPressed") == "true"


def test_the_programs_are_filtered_and_sorted(show: Any) -> None:
    device = n150()
    device["programs"] = [{**device["programs"][0], "program_id": i, "name": f"op {i}", "count": i} for i in range(20)]
    browser = show(page(device))
    names = "[...document.querySelectorAll('[aria-label=Programs] tbody tr')].map(r => r.cells[0].textContent)"
    assert browser.run(names) == [f"op {i}" for i in range(20)]
    browser.click("[aria-label=Programs] th:nth-child(2) button")
    assert browser.run(names) == [f"op {i}" for i in reversed(range(20))]
    browser.run(
        "(() => { const f = document.querySelector('[aria-label=Programs] .filter'); f.value = 'op 1'; "
        "f.dispatchEvent(new Event('input')); })()"
    )
    assert len(browser.run(names)) == 11


@pytest.mark.parametrize("dark", [False, True])
def test_it_is_light_and_dark_as_the_system_and_as_asked(show: Any, dark: bool) -> None:
    browser = show(page(n150()), dark=dark)
    light = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128"
    heat = "document.querySelector('rect.core').getAttribute('fill')"
    assert browser.run(light) is not dark
    first = browser.run(heat)
    browser.click("#theme")
    assert browser.run(light) is True
    light_heat = browser.run(heat)
    browser.click("#theme")
    assert browser.run(light) is False
    assert browser.run(heat) != light_heat
    browser.click("#theme")
    assert browser.run(light) is not dark
    assert browser.run(heat) == first


def test_on_paper_it_is_light_and_without_buttons(show: Any) -> None:
    browser = show(page(n150()), dark=True, media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.run("getComputedStyle(document.querySelector('#theme')).display") == "none"


@pytest.mark.parametrize("width", [400, 800, 1280])
def test_nothing_runs_off_the_side(show: Any, width: int) -> None:
    device = n150()
    device["programs"][0]["name"] = "ttnn::" + "x" * 300
    browser = show(page(*[device, *eight()[1:]], timeline=recorded(20)), width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_hostile_names_do_nothing_in_the_browser(show: Any) -> None:
    device = n150(warnings=[EVIL], arch=EVIL)
    device["processes"][0]["name"] = device["programs"][0]["name"] = EVIL
    browser = show(page(device, host=EVIL))
    assert EVIL.partition("\u2028")[0] in text_of(browser, "[aria-label=Programs]")
    assert browser.run("document.querySelectorAll('script').length") == 2
    assert browser.run("document.querySelectorAll('img').length") == 0


def test_32_devices_of_140_cores_can_be_used(show: Any) -> None:
    browser = show(page(*galaxy(), core_details=galaxy_details()))
    browser.click('tr.pick[data-device="31"]')
    assert browser.run("document.querySelectorAll('rect.core').length") == 140
    browser.click('rect.core[data-core="13,9"]')
    assert "core 13,9" in text_of(browser, "#map-title")


def test_the_timeline_shows_the_moment_under_the_mouse(show: Any) -> None:
    browser = show(page(n150(), timeline=recorded(51)))
    assert "51 moments over 0.50 s" in text_of(browser, "[aria-label=Timeline]")
    browser.hover('svg.chart[aria-label="CB, CB resident"] rect')
    said = text_of(browser, "#tip")
    assert "0.250 s" in said
    assert format_bytes(65536 * 25) in said


def test_sizes_read_the_same_as_in_the_terminal(show: Any) -> None:
    sizes = [0, 1, 1023, 1024, 1280, 1792, 1310720, 1048524, 1048525, 2**40, 12 * 1024**3 + 7, 5 * 2**30 // 4]
    made = []
    for i, size in enumerate(sizes):
        device = copy.deepcopy(n150(i))
        device["memory"]["dram"]["used_bytes"] = size
        made.append(device)
    browser = show(page(*made))
    shown = browser.run("[...document.querySelectorAll('tr.pick')].map(r => r.cells[7].textContent)")
    assert shown == [format_bytes(size) for size in sizes]


@pytest.mark.parametrize("used", [0, 1, 5 * 2**20, 8 * 2**30, 12 * 1024**3 - 1, 12 * 1024**3])
def test_shares_read_the_same_as_in_the_terminal(show: Any, used: int) -> None:
    device = n150()
    device["memory"]["dram"]["used_bytes"] = used
    browser = show(page(device))
    said = text_of(browser, '[data-label="DRAM"] .more')
    assert said.startswith(f"{percent(used, 12 * 1024**3)} of 12.0 GiB")
    assert browser.run("document.querySelectorAll('[data-label=DRAM] .bar i').length") == (1 if used else 0)


def test_a_peak_tells_its_moment_and_what_reached_it(published: ttmem.Publisher, show: Any) -> None:
    before_ns = time.time_ns()
    program = published.add_program(
        [ttmem.CircularBuffer(105664, 2**20, ttmem.CoreRange(ttmem.CoreCoord(0, 0), ttmem.CoreCoord(7, 7)))],
        name="<softmax>",
    )
    published.remove_program(program)
    device = published.snapshot().to_dict()
    cb = device["memory"]["cb"]
    assert (cb["peak_by"], cb["peak_programs"]) == ("<softmax>", 2)
    # The clock is a coarse one.
    assert before_ns - 50_000_000 <= cb["peak_at_ns"] <= time.time_ns()
    (said,) = (text for text in explain_figures(device) if text.startswith("CB peaked"))
    assert f"{format_bytes(cb['peak_bytes'])} when <softmax> came into the cache, at 2" in said
    assert said.endswith("with 2 programs there.")
    browser = show(render_html([device], taken_ns=time.time_ns(), host="x"))
    shown = text_of(browser, "[aria-label='Highest since publish'] tbody tr").split("\t")
    assert [shown[0], shown[1], shown[3], shown[4]] == ["CB", format_bytes(cb["peak_bytes"]), "<softmax>", "2 programs"]
    assert shown[2] in said
    browser.click("[data-metric=cb_peak_bytes]")
    peaks = {(core["x"], core["y"]): core["cb_peak_bytes"] for core in device["cores"]}
    assert set(peaks.values()) == {2**20}
    assert browser.run("document.querySelector('rect.core[data-core=\"7,7\"]').dataset.value") == str(2**20)


def test_peaks_whose_moment_is_unknown_are_not_dated() -> None:
    device = p150()
    assert "CB" not in [row[0] for row in data_of(page(device))["devices"][0]["peaks"]]
    assert not any("CB peaked at" in text and "UTC" in text for text in explain_figures(device))


def test_the_peaks_of_several_processes_are_marked_as_upper_bounds(show: Any) -> None:
    device = n150()
    peak = format_bytes(device["memory"]["cb"]["peak_bytes"])
    first = {**device["processes"][0], "state": "live"}
    for count, said in ((1, f"peak {peak}"), (2, f"peak \u2264 {peak}")):
        browser = show(page({**device, "processes": [{**first, "pid": 7 + i} for i in range(count)]}))
        assert said in text_of(browser, '[data-label="CB"] .more')


def test_a_galaxy_of_replays_says_so(show: Any) -> None:
    browser = show(page(*thirty_two()))
    assert "replay" in text_of(browser, ".device-head")


# The command


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ttmem.Publisher]:
    shm = tmp_path / "shm"
    shm.mkdir()
    monkeypatch.setenv("TTMEM_SHM_DIR", str(shm))
    monkeypatch.delenv("TTMEM_NAMESPACE", raising=False)
    monkeypatch.delenv("TTMEM_DISABLE", raising=False)
    with ttmem.publish(3, arch="wormhole_b0", grid=(8, 8), l1_cb_base=105664, l1_small_size=24576) as publisher:
        cores = ttmem.CoreRange(ttmem.CoreCoord(0, 0), ttmem.CoreCoord(5, 3))
        publisher.dispatch(publisher.add_program([ttmem.CircularBuffer(105664, 65536, cores)], name="matmul"))
        publisher.allocate(ttmem.BufferType.L1, 64 * 2048, address=1400000, size_per_bank=2048, name="weights")
        publisher.load_kernel(204800, persistent=True)
        yield publisher


def test_dump_writes_the_page_of_what_is_published(
    published: ttmem.Publisher, tmp_path: Path, show: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.html"
    assert main(["--html", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert f"wrote {path}" in err
    device = published.snapshot().to_dict()
    browser = show(path.read_text())
    assert text_of(browser, '[data-label="CB"] .value') == format_bytes(device["memory"]["cb"]["physical_bytes"])
    browser.click('rect.core[data-core="2,2"]')
    drawn = browser.run(
        "[...document.querySelectorAll('svg.map rect.range')]"
        ".map(r => [r.dataset.part, +r.dataset.begin, +r.dataset.end])"
    )
    assert ["cb", 105664, 171200] in drawn
    assert ["buffers", 1400000, 1402048] in drawn
    assert "L1 buffer: weights" in text_of(browser, "#map")
    assert "L1\t" in text_of(browser, "[aria-label=Buffers]")
    assert not list(tmp_path.glob(".*.new"))


def test_json_and_page_are_of_one_reading(
    published: ttmem.Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.html"
    assert main(["--html", str(path), "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    data = data_of(path.read_text())
    assert data["taken_ns"] == whole["taken_ns"]
    assert data["devices"][0]["memory"] == whole["devices"][0]["memory"]


def test_the_page_can_go_to_stdout(published: ttmem.Publisher, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["--html", "-"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"<!doctype html>")
    assert main(["--html", "-", "--json"]) == 2


def test_a_page_that_cannot_be_written_is_wrong_usage(
    published: ttmem.Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--html", str(tmp_path / "missing" / "out.html")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_a_page_written_again_holds_a_timeline(published: ttmem.Publisher, tmp_path: Path) -> None:
    page_file = PageFile(str(tmp_path / "out.html"))
    for i in range(3):
        snapshot = published.snapshot()
        page_file.write([snapshot], [snapshot.to_dict()], TAKEN_NS + i * 1_000_000)
        published.allocate(ttmem.BufferType.DRAM, 4096)
    over_time = data_of((tmp_path / "out.html").read_text())["timeline"]
    (line,) = over_time["devices"]
    assert over_time["lists"][line["series"][6]] == [0, 1, 4096, 1, 8192, 1]
    assert over_time["ms"] == [0, 1, 2]
    assert over_time["shown_ms"] == 2


@pytest.fixture(scope="module")
def recorded_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A recording of three chips: the second one is fullest in the middle, the third leaves."""
    path = tmp_path_factory.mktemp("recording") / "run.ttmem"
    dumps = []
    with RecordingWriter(path) as writer:
        for i in range(21):
            made = [n150(number) for number in range(3 if i < 15 else 2)]
            for device in made:
                device["memory"]["dram"]["used_bytes"] = 2**20 * i
            made[1]["l1_accounting"]["cb_bytes"] -= 65536 * abs(10 - i)
            made[1]["l1_accounting"]["free_bytes"] += 65536 * abs(10 - i)
            dump = Dump(made, TAKEN_NS + i * 100_000_000, "lab-9")
            writer.write(dump)
            dumps.append(dump.to_dict())
    return path, dumps


def test_the_page_of_a_recording_shows_the_fullest_moment_and_the_timeline_of_all(
    recorded_file: Any, tmp_path: Path, show: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dumps = recorded_file
    page_path = tmp_path / "out.html"
    assert main(["--html", str(page_path), str(path)]) == 0
    assert "21 moments; shown is the fullest 1.00 s after the first" in capsys.readouterr().err
    data = data_of(page_path.read_text())
    assert data["host"] == "lab-9"
    assert data["taken_ns"] == dumps[10]["taken_ns"]
    assert [device["memory"] for device in data["devices"]] == [device["memory"] for device in dumps[10]["devices"]]
    browser = show(page_path.read_text())
    said = text_of(browser, "[aria-label='Timeline of all devices']")
    assert "21 moments over 2.00 s" in said
    assert "Devices 0-1" in said
    assert f"highest {format_bytes(20 * 2**20)} at 2.00 s" in said
    assert browser.run("document.querySelectorAll('svg.spark path').length") == 3
    assert browser.run("document.querySelectorAll('svg.chart .shown').length") >= 4
    browser.hover("svg.chart[aria-label='DRAM'] rect")
    assert f"Device 2\n{format_bytes(10 * 2**20)}" in text_of(browser, "#tip").replace("\t", "\n")


def test_a_device_that_left_before_the_moment_shown_is_in_the_timeline_only(
    recorded_file: Any, tmp_path: Path, show: Any
) -> None:
    path, _ = recorded_file
    page_path = tmp_path / "out.html"
    assert main(["--html", str(page_path), str(path), "--at", "last"]) == 0
    data = data_of(page_path.read_text())
    assert [device["device_id"] for device in data["devices"]] == [0, 1]
    gone = next(line for line in data["timeline"]["devices"] if line["device_id"] == 2)
    assert data["timeline"]["lists"][gone["series"][6]][-2:] == [None, 6]
    browser = show(page_path.read_text())
    assert "Not there at the moment that this page shows: Device 2" in text_of(browser)


@pytest.mark.parametrize(("at", "index"), [("first", 0), ("last", 20), ("0.34", 3), ("99", 20), (None, 10)])
def test_a_moment_of_a_file_stands_for_the_host(
    recorded_file: Any, at: str | None, index: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path, dumps = recorded_file
    assert main(["--json", str(path), *([] if at is None else ["--at", at])]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["taken_ns"] == dumps[index]["taken_ns"]
    assert told["host"] == "lab-9"
    assert [device["memory"] for device in told["devices"]] == [device["memory"] for device in dumps[index]["devices"]]


def test_a_file_can_be_queried_and_chosen_from(recorded_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = recorded_file
    query = ["--query", "device_id,memory.dram.used", "--format", "csv,noheader,nounits"]
    assert main([str(path), "--at", "last", "-d", "1", *query]) == 0
    assert capsys.readouterr().out == f"1, {20 * 2**20}\n"
    assert main([str(path), "--at", "last", "-d", "2"]) == 1
    assert "no such device: 2; there is 0, 1" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["-w"], ["--at", "soon"], ["--at", "-1"]])
def test_what_a_file_cannot_do_is_wrong_usage(recorded_file: Any, wrong: list[str]) -> None:
    assert main([str(recorded_file[0]), *wrong]) == 2


def test_a_file_behind_cores_is_no_figure(recorded_file: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cores", str(recorded_file[0])]) == 0
    assert "physical CB of each core" in capsys.readouterr().out
    assert main(["--cores", "cb_peak", str(recorded_file[0])]) == 0
    assert "peak of the physical CB" in capsys.readouterr().out
    assert main(["--cores", "cb_peek"]) == 2
    assert "'cb_peek' is none of cb_physical" in capsys.readouterr().err


def test_a_moment_needs_a_file() -> None:
    assert main(["--at", "last"]) == 2


def test_a_file_that_is_missing_or_no_recording_keeps_the_promise_of_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", str(tmp_path / "none")]) == 1
    assert json.loads(capsys.readouterr().out)["devices"] == []
    (tmp_path / "text").write_text("hello\n")
    assert main(["--json", str(tmp_path / "text")]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["devices"] == []
    assert "ttmem-replay FILE --dump" in captured.err


def test_explain_says_what_the_figures_mean(published: ttmem.Publisher, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--explain"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Device 3:" in said
    for sentence in explain_figures(published.snapshot().to_dict()):
        assert " ".join(sentence.split()) in said
