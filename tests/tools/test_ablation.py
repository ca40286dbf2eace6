from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import tools.ablation
from bitswitch_deploy.catalogue import bundled_master
from bitswitch_deploy.errors import CheckFailedError
from bitswitch_deploy.master import read_master
from bitswitch_deploy.training.checkpoint import save_checkpoint
from bitswitch_deploy.training.recipe import RECIPES, load_recipe
from bitswitch_deploy.training.run_record import circumstances
from bitswitch_deploy.training.session import Session
from tools.ablation import SUPERNET_VARIANTS, VARIANTS, main, varied
from tools.results_table import read_run


def run(folder: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(folder), *words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_changes_one_thing(variant: str) -> None:
    recipe = load_recipe("digits")
    changed = varied(recipe, variant, 5)
    assert (changed.name, changed.seed) == (f"digits+{variant}", 5)
    settings = [(recipe.joint, changed.joint), (recipe.quantization, changed.quantization)]
    pairs = [(asdict(old), asdict(new)) for old, new in settings]  # type: ignore[call-overload]
    differing = [name for old, new in pairs for name in old if old[name] != new[name]]
    assert len(differing) == (0 if variant == "as-it-is" else 1)


@pytest.mark.parametrize("variant", SUPERNET_VARIANTS)
def test_each_variant_of_the_supernet_changes_one_thing(variant: str) -> None:
    recipe = load_recipe("digits-supernet-short")
    changed = varied(recipe, variant, 5)
    assert (changed.joint, changed.quantization) == (recipe.joint, recipe.quantization)
    assert recipe.supernet is not None
    assert changed.supernet is not None
    old, new = asdict(recipe.supernet), asdict(changed.supernet)
    assert len([name for name in old if old[name] != new[name]]) == (0 if variant == "supernet-hasb" else 1)


def test_a_recipe_without_a_supernet_has_no_such_variant(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(tmp_path), "--variants", "supernet-hasb"])
    assert done.exit_code == 2
    assert "--variants: supernet-hasb\n  allowed: as-it-is" in done.output


@pytest.mark.parametrize("seeds", ["", "1,,2", "one", "-1", "1.5", str(2**70)])
def test_seeds_that_are_no_numbers_are_refused(tmp_path: Path, seeds: str) -> None:
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(tmp_path), "--seeds", seeds])
    assert done.exit_code == 2
    assert f"--seeds: {seeds}\n  allowed: whole numbers from 0" in done.output


def test_runs_variants_and_seeds_and_skips_what_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[Session] = []
    master = read_master(bundled_master())

    def trained(session: Session) -> SimpleNamespace:
        sessions.append(session)
        assert session.log is not None
        if session.recipe.joint.alrs == "none":
            raise CheckFailedError(where="training of conv1 at 2 bits", got="loss nan", allowed="", do="")
        save_checkpoint({}, session.state)
        session.log.write_text(json.dumps({"event": "end"}) + "\n", encoding="utf-8")
        return SimpleNamespace(master=master)

    monkeypatch.setattr(tools.ablation, "run_session", trained)
    words = ("--variants", "as-it-is,alrs-none", "--seeds", "1,2", "--steps", "3")
    run(tmp_path, *words)
    assert [(s.recipe.name, s.recipe.seed, s.joint_steps, s.resume) for s in sessions] == [
        (f"digits+{variant}", seed, 3, True) for seed in (1, 2) for variant in ("as-it-is", "alrs-none")
    ]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl"] * 4 + [".safetensors"] * 2
    assert read_master(tmp_path / "digits+as-it-is-seed2.safetensors").sha256 == master.sha256
    failed: dict[str, Any] = json.loads((tmp_path / "digits+alrs-none-seed2.log.jsonl").read_text(encoding="utf-8"))
    assert failed == {"event": "failed", "reason": "training of conv1 at 2 bits: loss nan"}
    assert run(tmp_path, *words).count("done before") == 4
    assert len(sessions) == 4


def started(folder: Path, last: str = "end", **options: Any) -> Path:
    """The log of a run of `digits+as-it-is` with these options."""
    recipe = varied(load_recipe("digits"), "as-it-is", 1)
    path = folder / "digits+as-it-is-seed1.log.jsonl"
    start = circumstances(Session(recipe=recipe, data=folder, state=folder / "state", **options), {})
    lines = ({"event": "start", "step": 0, **start}, {"event": last})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_run_without_its_master_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started(tmp_path)
    master = read_master(bundled_master())
    monkeypatch.setattr(tools.ablation, "run_session", lambda session: SimpleNamespace(master=master))
    assert "done before" not in run(tmp_path, "--variants", "as-it-is")
    assert (tmp_path / "digits+as-it-is-seed1.safetensors").is_file()
    assert "done before" in run(tmp_path, "--variants", "as-it-is")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"joint_steps": 50}, "joint_steps 50\n  allowed: joint_steps None"),
        ({"threads": 2}, "threads 2\n  allowed: threads 1"),
    ],
)
def test_a_run_with_other_options_is_not_done(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    started(tmp_path, "failed", **options)
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(tmp_path), "--variants", "as-it-is"])
    assert done.exit_code == 2
    assert f"a run that ended with {words}" in done.output


def test_an_interruption_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(session: Session) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tools.ablation, "run_session", interrupted)
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(tmp_path), "--variants", "as-it-is"])
    assert done.exit_code == 130
    assert "the same command goes on" in done.stderr


def test_one_real_run_gives_a_log_for_the_results_page(tmp_path: Path) -> None:
    recipe = tmp_path / "quick.yaml"
    text = (RECIPES / "digits.yaml").read_text(encoding="utf-8")
    recipe.write_text(text.replace("epochs: 40", "epochs: 1").replace("name: digits", "name: quick"), encoding="utf-8")
    words = ["--recipe", str(recipe), "--variants", "scale-per-tensor", "--steps", "1", "-o", str(tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    found = read_run(tmp_path / "quick+scale-per-tensor-seed1.log.jsonl")
    assert found is not None
    assert (found.recipe, found.variant, list(found.top1)) == ("quick", "scale-per-tensor", ["w8", "w6", "w4", "w2"])
    assert found.start["quantization"]["granularity"] == "per_tensor"


def test_an_unknown_variant(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["--recipe", "digits", "-o", str(tmp_path), "--variants", "alrs"])
    assert done.exit_code == 2
    assert "--variants: alrs\n  allowed: as-it-is, alrs-none" in done.output
