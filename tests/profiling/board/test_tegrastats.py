"""Lines of tegrastats. Where a form comes from, and whether it was confirmed, stands above each line.

None was recorded by us: there was no board. "Published recording" means that users published output of this form for
that release; the numbers here are our own.
"""

from __future__ import annotations

import pytest

from bitswitch_deploy.profiling.board.tegrastats import TegrastatsSample, parse_tegrastats

# JetPack 4, Jetson Nano (r32): Jetson Linux Developer Guide and published recordings; rails without units.
JETPACK_4_NANO = (
    "RAM 2100/3956MB (lfb 40x4MB) SWAP 0/1978MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [30%@1479,12%@1479,off,off] "
    "EMC_FREQ 0% GR3D_FREQ 45%@921 APE 25 PLL@38C CPU@41.5C PMIC@100C GPU@39C AO@46.5C thermal@40.25C "
    "POM_5V_IN 4532/4398 POM_5V_GPU 1200/988 POM_5V_CPU 700/655"
)
# JetPack 5, Xavier NX (r35): published recordings.
JETPACK_5_XAVIER_NX = (
    "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397,17%@1192,off,off] "
    "EMC_FREQ 2%@1600 GR3D_FREQ 99%@[1109] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C AO@45C GPU@47.5C "
    "PMIC@50C VDD_IN 9763mW/8846mW VDD_CPU_GPU_CV 4650mW/3670mW VDD_SOC 1650mW/1511mW"
)
# JetPack 5, AGX Orin (r35): published recordings; sensors that are off read -256, unused channels are called NC.
JETPACK_5_AGX_ORIN = (
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,1%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 12%@[1300,1299] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C SOC2@40.093C "
    "GPU@-256C tj@44.343C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW "
    "VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)
# JetPack 6, Orin Nano (r36.4): published recordings; sensors in small letters, engines that are off say so.
JETPACK_6_ORIN_NANO = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU [38%@1497,2%@729] "
    "EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@57.125C soc2@55.093C "
    "gpu@58.625C tj@58.312C VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/2720mW"
)
# JetPack 7, AGX Thor under load (r39): published recordings; highest values behind the averages.
JETPACK_7_THOR = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ 34%@4266 "
    "GR3D_FREQ 87%@[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C "
    "VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN 124486mW/36487mW/124486mW FUTURE value"
)
# JetPack 7, AGX Thor (r38, r39): published recordings; no load of the GPU, one clock for all cores. A rail below zero
# was reported for an idle GPU by one user, and is not confirmed.
JETPACK_7_THOR_IDLE = (
    "08-08-2026 20:58:23 RAM 3429/125749MB (lfb 120x4MB) CPU [0%,5%,off]@2601 EMC_FREQ @4266 "
    "GR3D_FREQ @[314,314,314] cpu@49.75C/49.75C tj@51.218C/51.218C VDD_GPU -392mW/-392mW/0mW "
    "VIN 28906mW/14453mW/28906mW"
)


def one(line: str) -> TegrastatsSample:
    (sample,) = parse_tegrastats([line])
    return sample


@pytest.mark.parametrize(
    ("line", "load", "gpu_mhz"),
    [
        (JETPACK_4_NANO, 45, (921,)),
        (JETPACK_5_XAVIER_NX, 99, (1109,)),
        (JETPACK_5_AGX_ORIN, 12, (1300, 1299)),
        (JETPACK_6_ORIN_NANO, 99, (612,)),
        (JETPACK_7_THOR, 87, (1574, 1574, 1574)),
        (JETPACK_7_THOR_IDLE, None, (314, 314, 314)),
    ],
)
def test_every_form_gives_load_and_clocks(line: str, load: int | None, gpu_mhz: tuple[int, ...]) -> None:
    sample = one(line)
    assert (sample.gpu_load_percent, sample.gpu_mhz) == (load, gpu_mhz)


@pytest.mark.parametrize(
    ("line", "temperatures_c"),
    [
        (JETPACK_5_AGX_ORIN, (("CPU", 44.562), ("Tboard", 32.0), ("SOC2", 40.093), ("tj", 44.343))),
        (JETPACK_6_ORIN_NANO, (("cpu", 57.125), ("soc2", 55.093), ("gpu", 58.625), ("tj", 58.312))),
        (JETPACK_7_THOR, (("cpu", 58.25), ("tj", 66.625), ("gpu", 56.937))),
    ],
)
def test_temperatures_are_those_of_now_of_sensors_that_are_on(
    line: str, temperatures_c: tuple[tuple[str, float], ...]
) -> None:
    assert one(line).temperatures_c == temperatures_c


def test_a_load_without_a_clock_is_kept() -> None:
    sample = one("RAM 1/2MB GR3D_FREQ 88% CPU@58.5C")
    assert (sample.gpu_load_percent, sample.gpu_mhz) == (88, ())


def test_a_line_without_a_gpu_has_its_temperatures() -> None:
    assert one("RAM 1/2MB CPU [3%@1904,off] CPU@58.5C").temperatures_c == (("CPU", 58.5),)


def test_other_lines_are_passed_over() -> None:
    lines = [JETPACK_7_THOR, "", "tegrastats: permission denied", JETPACK_6_ORIN_NANO[:70]]
    assert parse_tegrastats(lines) == (one(JETPACK_7_THOR),)
