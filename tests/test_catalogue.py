from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bitswitch_deploy import catalogue
from bitswitch_deploy.catalogue import bundled_file, bundled_master, load_target, sample_set, target_names
from bitswitch_deploy.errors import TargetFileError, UnavailableError, UsageError
from bitswitch_deploy.target import Target

REPOSITORY = Path(__file__).parents[1]
NANO = ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
L4T = "# R{} (release), REVISION: {}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2026\n# KERNEL\n"


def board(root: Path, compatible: tuple[str, ...], release: tuple[str, str] | None = None) -> Path:
    """A root folder that looks like a board with this device tree and L4T release."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/device-tree/compatible").write_bytes(b"".join(name.encode() + b"\0" for name in compatible))
    (root / "etc").mkdir()
    if release:
        (root / "etc/nv_tegra_release").write_text(L4T.format(*release))
    return root


# --- the bundled files -----------------------------------------------------------------------------------------------


def test_the_bundled_names() -> None:
    assert target_names() == (
        "arm64-cpu",
        "jetson-agx-orin",
        "jetson-agx-xavier",
        "jetson-orin-nano",
        "jetson-orin-nx",
        "jetson-thor",
        "jetson-xavier-nx",
        "rtx",
        "x86-cpu",
    )


@pytest.mark.parametrize("name", target_names())
def test_every_bundled_target_loads_under_its_name(name: str) -> None:
    resolved = load_target(name)
    assert resolved.target.name == name
    assert resolved.note is None
    assert resolved.target.stack.default


@pytest.mark.parametrize("name", target_names())
def test_every_stack_is_reachable_and_its_l4t_rules_exclude_each_other(name: str) -> None:
    stacks = load_target(name).target.stacks
    for stack in stacks:
        assert load_target(f"{name}@{stack.name}").target.stack == stack
    rules = [stack.l4t for stack in stacks if stack.l4t]
    assert len(rules) == len(set(rules))


def by_family(family: str) -> list[Target]:
    return [target for target in (load_target(name).target for name in target_names()) if target.family == family]


def test_jetson_profiles_keep_to_what_tensorrt_reads() -> None:
    versions = {"4.6": (13, 7), "5.1": (17, 8), "6.0": (17, 8), "6.2": (17, 8)}
    for target in by_family("jetson"):
        assert target.engine.build == "on_device"
        assert {"uint8", "int2", "int16"} <= set(target.quantization.forbid_types)
        for stack in target.stacks:
            assert (stack.opset, stack.ir_version) == versions.get(stack.name, (21, 10))
            assert (stack.weight_form == "float_q_dq") == stack.engine_version.startswith("8.")


def test_cpu_profiles_absorb_relu_and_leave_no_branch_in_float() -> None:
    formats = {target.arch: (target.quantization.activation.dtype, target.quantization) for target in by_family("cpu")}
    assert {dtype for dtype, _ in formats.values()} == {"uint8"}
    assert {quantization.activation.zero_point for _, quantization in formats.values()} == {0}
    assert all(quantization.residual == "both_inputs" for _, quantization in formats.values())


def test_rtx_packs_narrow_matmul_weights_only() -> None:
    quantization = load_target("rtx").target.quantization
    assert [quantization.weight_container("MatMul", bits) for bits in (4, 5)] == ["int4", "int8"]
    assert quantization.weight_container("Conv", 4) == "int8"


def test_no_part_number_belongs_to_two_boards() -> None:
    numbers = [number for target in by_family("jetson") for number in target.detect.part_numbers]
    assert len(numbers) == len(set(numbers))


# --- names and paths -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [("jetson-orin-nan", "'jetson-orin-nano'"), ("RTX", "'rtx'"), ("x86_cpu", "'x86-cpu'"), ("jetsn", "'jetson'")],
)
def test_an_unknown_name_gets_the_closest_one(text: str, hint: str) -> None:
    with pytest.raises(
        UsageError, match=rf"is not a target \(did you mean {hint}\?\)\n  allowed: cpu, jetson, arm64-cpu"
    ):
        load_target(text)


def test_an_unknown_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(UsageError, match=r"'qqq' is not a target\n  allowed: .*rtx.*YAML file\n  do: name one"):
        load_target("qqq")


def test_an_unknown_stack_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"no stack '9'\n  allowed: jetson-thor@7.1, jetson-thor@7.2, jetson-thor@7.2.2"
    ):
        load_target("jetson-thor@9")


@pytest.mark.parametrize("name", ["plain/mine.yaml", "with@sign/mine.yaml", "with@sign/mine", "plain/a@b.yml"])
def test_a_path_loads_with_and_without_a_stack(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    shutil.copy(REPOSITORY / "targets/jetson-agx-orin.yaml", path)
    assert load_target(str(path)).target.stack.name == "6.2"
    assert load_target(f"{path}@5.1").target.stack.weight_form == "float_q_dq"


def test_a_file_beside_the_reader_needs_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "targets/rtx.yaml", tmp_path / "mine.yml")
    monkeypatch.chdir(tmp_path)
    assert load_target("mine.yml").target.name == "rtx"


@pytest.mark.parametrize("name", ["jetson@", "jetson-orin-nano@", "cpu@"])
def test_a_stack_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="has no stack ''"):
        load_target(name)


def test_errors_name_file_and_key_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((REPOSITORY / "targets/rtx.yaml").read_text().replace("opset: 21", "opset: x"))
    with pytest.raises(TargetFileError, match=r"mine.yaml: stacks\[0\].opset: 'x'"):
        load_target(str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"mine.yaml: None\n  allowed: an object"),
        (b"a: 1\nb: [2\n", "mine.yaml:3: not YAML"),
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "mine.yaml:4: key 'c' stands here a second time"),
        (b"a: 1\nb: !!python/object/apply:os.getcwd []\n", "mine.yaml:2: not YAML: could not determine a constructor"),
        (b"name: \xff\n", "mine.yaml: not YAML: .*utf-8"),
        (b"name: \x00\n", "mine.yaml: not YAML: .*special characters"),
        (b"a: !!bool x\n", "mine.yaml: not YAML: a value does not fit its tag: KeyError"),
        (b"a: !!timestamp x\n", "mine.yaml: not YAML: a value does not fit its tag: AttributeError"),
        (b'a: !!int ""\n', "mine.yaml: not YAML: a value does not fit its tag: IndexError"),
        (b"name: 2026-99-99\n", "mine.yaml: not YAML: month"),
        (b"[" * 30_000, "mine.yaml: not YAML: maximum recursion"),
        (b"#" * 65_537, "mine.yaml: 65537 bytes\n  allowed: a YAML file of at most 65536 bytes"),
        (b"a: &a [*a]\n", "mine.yaml: unknown key: 'a'"),
        (b"a: 1\n---\nb: 1\n", "mine.yaml:2: not YAML: but found another document"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(TargetFileError, match=message):
        load_target(str(path))


def test_aliases_that_grow_without_bound_cost_nothing(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join([*lines, "title: *a39"]))
    with pytest.raises(TargetFileError, match="unknown key: 'a0'"):
        load_target(str(path))


@pytest.mark.parametrize(("name", "got"), [("none.yaml", "there is no such file"), (".", "is not a file")])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, got: str) -> None:
    with pytest.raises(TargetFileError, match=f": {got}\n"):
        load_target(f"{tmp_path}/{name}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetFileError, match="cannot be read: File name too long"):
        load_target(f"{tmp_path}/{'x' * 300}.yaml")


# --- aliases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "name"),
    [("x86_64", "x86-cpu"), ("AMD64", "x86-cpu"), ("aarch64", "arm64-cpu"), ("arm64", "arm64-cpu")],
)
def test_cpu_is_the_processor_of_the_host(monkeypatch: pytest.MonkeyPatch, machine: str, name: str) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    resolved = load_target("cpu")
    assert resolved.target.name == name
    assert resolved.note is not None
    assert f"using {name}" in resolved.note


def test_cpu_of_another_architecture_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(
        UnavailableError, match=r"no CPU profile for 'riscv64'\n  allowed: arm64-cpu \(aarch64\), x86-cpu"
    ):
        load_target("cpu")


@pytest.mark.parametrize(
    ("compatible", "release", "name", "stack"),
    [
        (NANO, ("36", "4.3"), "jetson-orin-nano", "6.2"),
        (NANO, ("36", "3.0"), "jetson-orin-nano", "6.0"),
        (NANO, ("39", "2.1"), "jetson-orin-nano", "7.2"),
        (("nvidia,p3768-0000+p3767-0001-super", "nvidia,tegra234"), ("36", "4.4"), "jetson-orin-nx", "6.2"),
        (("nvidia,p3768-0000+p3767-0000", "nvidia,tegra234"), ("36", "5.0"), "jetson-orin-nx", "6.2"),
        (
            ("nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"),
            ("35", "2.1"),
            "jetson-agx-orin",
            "5.1",
        ),
        (("nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"), ("38", "2.0"), "jetson-thor", "7.1"),
        (("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194"), ("35", "4.1"), "jetson-xavier-nx", "5.1"),
        (("nvidia,p2972-0000", "nvidia,tegra194"), ("32", "7.4"), "jetson-agx-xavier", "4.6"),
    ],
)
def test_jetson_is_the_board_with_its_stack(
    tmp_path: Path, compatible: tuple[str, ...], release: tuple[str, str], name: str, stack: str
) -> None:
    resolved = load_target("jetson", root=board(tmp_path, compatible, release))
    assert (resolved.target.name, resolved.target.stack.name) == (name, stack)
    assert resolved.note == f"jetson: found {resolved.target.title}, L4T {'.'.join(release)}, using {name}@{stack}"


def test_a_named_stack_wins_over_the_installed_one(tmp_path: Path) -> None:
    resolved = load_target("jetson@5.1", root=board(tmp_path, NANO, ("36", "4.3")))
    assert (resolved.target.name, resolved.target.stack.name) == ("jetson-orin-nano", "5.1")


def test_a_board_that_hides_its_l4t_gets_the_default_stack(tmp_path: Path) -> None:
    resolved = load_target("jetson", root=board(tmp_path, NANO))
    assert resolved.target.stack.name == "6.2"
    assert resolved.note is not None
    assert "L4T unknown (/etc/nv_tegra_release is missing or unreadable)" in resolved.note


def test_an_l4t_without_stack_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(
        UnavailableError, match=r"jetson-orin-nano has no stack for L4T 35.1\n  allowed: .*@5.1 \(L4T >=35.2"
    ):
        load_target("jetson", root=board(tmp_path, NANO, ("35", "1")))


def test_an_unknown_orin_module_is_taken_for_the_nano(tmp_path: Path) -> None:
    root = board(tmp_path, ("acme,box", "nvidia,p9999-0000", "nvidia,tegra234"), ("36", "3.0"))
    resolved = load_target("jetson", root=root)
    assert (resolved.target.name, resolved.target.stack.name) == ("jetson-orin-nano", "6.0")
    assert resolved.note is not None
    assert "module not known (p9999-0000, tegra234), taken for the nearest" in resolved.note


def test_an_unknown_thor_module_is_thor(tmp_path: Path) -> None:
    root = board(tmp_path, ("nvidia,p9999-0000", "nvidia,tegra264"), ("39", "2.0"))
    assert load_target("jetson", root=root).target.name == "jetson-thor"


def test_an_unknown_xavier_module_has_to_be_named(tmp_path: Path) -> None:
    root = board(tmp_path, ("nvidia,p9999-0000", "nvidia,tegra194"), ("35", "4.1"))
    with pytest.raises(
        UnavailableError, match=r"p9999-0000, tegra194\)\n  allowed: jetson-agx-xavier, jetson-xavier-nx\n"
    ):
        load_target("jetson", root=root)


def test_a_board_without_profile_is_unavailable(tmp_path: Path) -> None:
    root = board(tmp_path, ("nvidia,p3450-0000", "nvidia,tegra210"), ("32", "7.4"))
    with pytest.raises(UnavailableError, match=r"no bundled target for this board \(p3450-0000, tegra210\)"):
        load_target("jetson", root=root)


@pytest.mark.parametrize("compatible", [None, ("raspberrypi,5-model-b", "brcm,bcm2712")])
def test_on_any_other_host_jetson_is_orin_with_jetpack_6(tmp_path: Path, compatible: tuple[str, ...] | None) -> None:
    root = board(tmp_path, compatible) if compatible else tmp_path
    resolved = load_target("jetson", root=root)
    assert (resolved.target.name, resolved.target.stack.name) == ("jetson-orin-nano", "6.2")
    assert resolved.note is not None
    assert resolved.note.startswith("jetson: this host is not a Jetson, using jetson-orin-nano@6.2")
    assert load_target("jetson@5.1", root=root).target.stack.name == "5.1"


# --- other bundled files ---------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose data lies in _data, with a stranger's targets/ beside it."""
    digits = tmp_path / "bitswitch_deploy/_data/calibration/digits"
    digits.mkdir(parents=True)
    (tmp_path / "bitswitch_deploy/_data/targets").mkdir()
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/stranger.yaml").touch()
    shutil.copy(REPOSITORY / "targets/rtx.yaml", tmp_path / "bitswitch_deploy/_data/targets/rtx.yaml")
    for name in ("digits.safetensors", "train.npz", "test.npz"):
        (digits / name).touch()
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "bitswitch_deploy")
    return digits


def test_a_wheel_finds_its_own_data(wheel: Path) -> None:
    assert target_names() == ("rtx",)
    assert load_target("rtx").target.name == "rtx"
    assert bundled_master() == wheel / "digits.safetensors"
    found = sample_set("digits")
    assert found is not None
    assert (found.train, found.test) == (wheel / "train.npz", wheel / "test.npz")


@pytest.mark.usefixtures("wheel")
@pytest.mark.parametrize("name", ["imagenet", "", "../digits", "digits/../digits", "/tmp"])
def test_a_sample_set_that_is_not_bundled_is_none(name: str) -> None:
    assert sample_set(name) is None


def test_a_sample_set_needs_both_files(wheel: Path) -> None:
    (wheel / "test.npz").unlink()
    assert sample_set("digits") is None


@pytest.mark.usefixtures("wheel")
def test_a_missing_bundled_file_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"calibration/x.npz: this installation does not hold the file"):
        bundled_file("calibration/x.npz")


def test_a_clone_finds_the_files_beside_the_package() -> None:
    assert bundled_file("targets/rtx.yaml") == REPOSITORY / "targets/rtx.yaml"
