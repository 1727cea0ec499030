"""`mlx-ft validate` and `mlx-ft data` as a person meets them: text, files, exit codes."""

import gzip
import json
from pathlib import Path

import pytest

from mlx_ft import cli
from mlx_ft.datasets import descriptions
from mlx_ft.documents.build import BuildOptions
from mlx_ft.documents.items import KINDS
from tests.models import tiny

JOB = ("model.path=./model", "data=custom", "memory_profile=cpu", "device=cpu")
CHAT = {
    "messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "Blue."}]
}


def pair(i, **more):
    return {"prompt": f"Question {i}?", "completion": f"Answer {i}.", **more}


def put(path, *rows):
    """Rows, or lines as they are."""
    text = "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a tiny model, made the current one."""
    tiny.save(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_FT_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(capsys):
    """An `mlx-ft` command: exit code, stdout, stderr."""

    def run(*argv):
        capsys.readouterr()
        code = cli.main([str(text) for text in argv])
        return (code, *capsys.readouterr())

    return run


def validated(folder):
    """The newest report in its default place."""
    reports = (folder / "outputs" / "validate").iterdir()
    return max(reports, key=lambda path: path.stat().st_mtime)


def test_good_rows_are_said_to_be_fit(folder, run):
    put(folder / "my rows.jsonl", *map(pair, range(30)))
    code, out, _ = run("validate", *JOB, "data.path='my rows.jsonl'")
    assert code == 0
    assert out.startswith("30 rows = 30 kept + 0 truncated + 0 rejected\n")
    assert out.endswith("verdict: fit for training\n")
    where = validated(folder)
    assert where.name.startswith("my-rows-")
    assert {path.name for path in where.iterdir()} == {"report.json", "report.png"}
    assert f"outputs/validate/{where.name}/report.json" in out
    assert (where / "report.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((where / "report.json").read_text())
    splits = report["splits"]
    assert splits["train"]["rows"] + splits["valid"]["rows"] == report["rows"]["kept"] == 30
    assert f"Training: {report['outlook']['steps']:,} steps" in out


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "it's [a, b].jsonl", "folder", "data", "./geography_sql"]
)
def test_a_file_or_folder_may_be_named_alone(folder, run, name):
    path = folder / name
    if "." not in path.name:
        path.mkdir()
        path /= "train.jsonl"
    put(path, *map(pair, range(12)))
    code, out, _ = run("validate", name, *JOB, "data.max_errors=5%")
    assert (code, out.partition("\n")[0]) == (0, "12 rows = 12 kept + 0 truncated + 0 rejected")
    without = [text for text in JOB if text != "data=custom"]
    assert run("validate", *without, name, "data.max_errors=5%")[1] == out


def test_a_dataset_may_be_named_alone(folder, run):
    without = [text for text in JOB if text != "data=custom"]
    code, out, _ = run("validate", "principles", *without)
    assert (code, out.partition(" ")[0]) == (0, "100")
    assert "\n  builtin:principles/train.jsonl (training): messages 80\n" in out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["row.jsonl"], "data.path: no file or folder 'row.jsonl' in {}. Did you mean rows.jsonl?"),
        (["principle"], "No file, folder or dataset 'principle'. Did you mean principles?"),
        (["custom"], "data.path: no file or folder 'custom' in {}."),
        (["lora.rank"], "`lora.rank`: has no value. Write lora.rank=VALUE"),
        (["data.path=my", "rows.jsonl"], "`rows.jsonl`: is not of the form key=value. Quote"),
        (
            ["my", "rows.jsonl"],
            "mlx-ft validate data=custom \"data.path=['my','rows.jsonl']\"",
        ),
    ],
)
def test_what_cannot_be_named_alone_is_told(folder, run, argv, said):
    put(folder / "rows.jsonl", pair(1))
    code, out, err = run("validate", *argv)
    assert (code, out) == (2, "")
    assert said.format(folder) in err


def test_faulty_rows_go_to_a_file_that_can_be_mended_and_given_back(folder, run):
    rows = [pair(i) for i in range(20)]
    rows[4] |= {"completion": ""}
    put(folder / "rows.jsonl", *rows, '{"prompt": "Broken?", "completion": "Yes."')
    code, out, _ = run("validate", *JOB, "data.path=rows.jsonl", "--out", "report")
    assert code == 2
    assert "rows.jsonl:5: completion is empty" in out
    assert "json_syntax (1): mend the JSON" in out
    assert out.endswith("verdict: not fit for training: 2 of 21 rows are faulty\n")
    names = {"report.json", "report.png", "quarantine.jsonl", "quarantine.reasons.jsonl"}
    assert {path.name for path in (folder / "report").iterdir()} == names
    reasons = (folder / "report" / "quarantine.reasons.jsonl").read_text().splitlines()
    assert [json.loads(line)["code"] for line in reasons] == ["empty_turn", "json_syntax"]

    mended = (folder / "report" / "quarantine.jsonl").read_text()
    mended = mended.replace('"completion": ""', '"completion": "Mended."').replace(
        '"Yes."\n', '"Yes."}\n'
    )
    (folder / "mended.jsonl").write_text(mended)
    both = "data.path=[rows.jsonl,mended.jsonl]"
    code, out, _ = run("validate", *JOB, both, "data.max_errors=2", "--out", "again")
    assert code == 0
    assert out.startswith("23 rows = 21 kept + 0 truncated + 2 rejected\n")
    code, out, _ = run("validate", *JOB, "data.path=mended.jsonl")
    assert (code, out.partition("\n")[0]) == (0, "2 rows = 2 kept + 0 truncated + 0 rejected")


def test_where_no_row_is_usable_there_is_no_table_and_a_fault_is_said_once(folder, run):
    put(folder / "rows.jsonl", *[{"topic": f"Lakes {i}"} for i in range(4)])
    code, out, _ = run("validate", *JOB, "data.path=rows.jsonl")
    assert code == 2
    head, _, faults = out.partition("\n\nFaults\n")
    assert head == (
        "4 rows = 0 kept + 0 truncated + 4 rejected\n  rows.jsonl (training): no usable row"
    )
    assert faults.count("no known format: found the keys 'topic'") == 1
    assert (
        "\n    rows.jsonl:2: the same\n    rows.jsonl:3: the same\n    ... and 1 more\n" in faults
    )


@pytest.mark.parametrize(("allowed", "code"), [("1", 2), ("2", 0), ("5%", 2), ("10%", 0)])
def test_max_errors_decides(folder, run, allowed, code):
    put(folder / "rows.jsonl", *map(pair, range(18)), "{}", "{}")
    found, out, _ = run("validate", *JOB, "data.path=rows.jsonl", f"data.max_errors={allowed}")
    assert found == code
    assert ("verdict: fit for training" in out) == (code == 0)


def test_json_is_one_object_and_nothing_else(folder, run):
    put(folder / "rows.jsonl", *map(pair, range(9)), "{}")
    code, out, _ = run("validate", *JOB, "data.path=rows.jsonl", "--json")
    assert code == 2
    report = json.loads(out)
    assert report == json.loads((validated(folder) / "report.json").read_text("utf-8"))
    assert report["rows"]["rejected"] == 1
    assert report["faults"][0]["first"][0]["where"] == "rows.jsonl:10"


def test_a_second_run_says_the_same_from_the_cache(folder, run):
    put(folder / "rows.jsonl", *map(pair, range(9)), "{}")
    first = run("validate", *JOB, "data.path=rows.jsonl", "--out", "one")
    second = run("validate", *JOB, "data.path=rows.jsonl", "--out", "two")
    assert second[1] == first[1].replace("one/", "two/")
    for path in (folder / "one").iterdir():
        assert (folder / "two" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["data.path=gone.jsonl"], ["data.path", "gone.jsonl"]),
        (["data.path=rows.jsonl", "data.valid_path=gone.jsonl"], ["data.valid_path", "gone.jsonl"]),
        (["data.path=rows.jsonl", "data.fromat=text"], ["data.format?"]),
        (["data.path=rows.jsonl", "data.max_errors=many"], ["data.max_errors", "many"]),
        (["data.path=rows.jsonl", "--out", "rows.jsonl"], ["--out", "rows.jsonl"]),
        (["data.path=rows.jsonl", "data.template=chatnl"], ["chatml?"]),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(folder, run, argv, words):
    put(folder / "rows.jsonl", pair(1), pair(2))
    before = sorted(folder.iterdir())
    code, out, err = run("validate", *JOB, *argv)
    assert (code, out) == (2, "")
    assert [word for word in words if word not in err] == []
    assert "Traceback" not in err
    assert [path for path in sorted(folder.iterdir()) if path.name != "cache"] == before


def test_a_run_with_this_model_tells_how_long_it_takes(folder, run):
    put(folder / "rows.jsonl", *map(pair, range(12)))
    summary = {"model": "model", "device": "cpu", "status": "FINISHED", "tokens_per_second": 7.0}
    path = folder / "outputs" / "runs" / "one" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(summary))
    code, out, _ = run("validate", *JOB, "data.path=rows.jsonl")
    assert code == 0
    assert "at the speed of " in out
    assert "runs/one" in out


def test_the_built_in_datasets_are_listed(run):
    code, out, _ = run("data", "list")
    assert code == 0
    assert len(descriptions()) >= 5
    for name, about in descriptions().items():
        for part in (name, about.title, about.licence, about.source):
            assert part in out


EXPECTED = {
    "messages": {"messages": CHAT["messages"]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Sky?"},
                                   {"from": "gpt", "value": "Blue."}]},
    "alpaca": {"instruction": "Sky?", "input": "", "output": "Blue."},
    "chatml": {"text": "<|im_start|>user\nSky?<|im_end|>\n"
                       "<|im_start|>assistant\nBlue.<|im_end|>\n"},
    "prompt-completion": {"prompt": "Sky?", "completion": "Blue."},
}  # fmt: skip


@pytest.mark.parametrize("target", EXPECTED)
@pytest.mark.parametrize("source", ["messages", "sharegpt", "alpaca", "prompt-completion"])
def test_conversion_from_each_format_to_each(tmp_path, run, source, target):
    given = put(tmp_path / "in.jsonl", EXPECTED[source])
    code, out, err = run("data", "convert", given, tmp_path / "new/out.jsonl", "--to", target)
    assert (code, out) == (0, f"{tmp_path}/new/out.jsonl: 1 rows written, 0 left out\n")
    assert json.loads((tmp_path / "new/out.jsonl").read_text()) == EXPECTED[target]
    assert ("no place for which tokens are answers" in err) == (target == "chatml")


def test_conversion_says_what_is_lost_and_how_often(tmp_path, run):
    turns = CHAT["messages"]
    weighed = {"messages": [turns[0], turns[1] | {"weight": 0}, *turns]}
    given = put(tmp_path / "in.jsonl", weighed, weighed, CHAT)
    code, _, err = run("data", "convert", given, tmp_path / "out.jsonl", "--to", "alpaca")
    assert code == 0
    assert err == "alpaca has no place for which answers carry no loss: 2 rows\n"


def test_conversion_tells_what_reading_told(tmp_path, run):
    given = put(tmp_path / "in.json", json.dumps({"version": 3, "data": [CHAT]}))
    code, _, err = run("data", "convert", given, tmp_path / "out.jsonl", "--to", "alpaca")
    assert code == 0
    assert "not used beside the rows: version." in err


def test_rows_that_cannot_be_converted_are_named(tmp_path, run):
    given = put(tmp_path / "in.jsonl", CHAT, "{", {"text": "raw"}, *["{}"] * 20, CHAT)
    code, out, err = run("data", "convert", given, tmp_path / "out.jsonl", "--to", "messages")
    assert (code, out) == (1, f"{tmp_path}/out.jsonl: 2 rows written, 22 left out\n")
    for line in (2, 3, 4):
        assert f"left out: {given}:{line}: " in err
    assert err.endswith("left out: 7 more\n")


@pytest.mark.parametrize(
    "name", ["out.json", "out.csv", "out.parquet", "out.jsonl.gz", "o.tsv.zst"]
)
def test_any_kind_of_file_is_written_and_read_again(tmp_path, run, name):
    given = put(tmp_path / "in.jsonl", *map(pair, range(3)))
    assert run("data", "convert", given, tmp_path / name, "--to", "sharegpt")[0] == 0
    back = tmp_path / "back.jsonl"
    assert run("data", "convert", tmp_path / name, back, "--to", "prompt-completion")[0] == 0
    assert [json.loads(line) for line in back.read_text().splitlines()] == [
        pair(i) for i in range(3)
    ]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["in.jsonl", "there.jsonl"], ["there.jsonl exists", "--overwrite"]),
        (["in.jsonl", "out.xlsx"], ["out.xlsx", ".jsonl", ".parquet"]),
        (["gone.jsonl", "out.jsonl"], ["gone.jsonl is not a file"]),
        (["in.jsonl", "in.jsonl", "--overwrite"], ["in.jsonl", "another name"]),
        (["in.jsonl", "out.jsonl", "--format", "yaml"], ["--format", "'yaml'", "alpaca"]),
        (["in.jsonl", "in.jsonl/out.jsonl"], ["in.jsonl/out.jsonl", "cannot be written"]),
    ],
)
def test_mistakes_of_conversion_write_nothing(tmp_path, monkeypatch, run, argv, words):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "in.jsonl", CHAT)
    put(tmp_path / "there.jsonl", "mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    code, out, err = run("data", "convert", *argv, "--to", "messages")
    assert code != 0
    assert out == ""
    assert [word for word in words if word not in err] == []
    assert "Traceback" not in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_overwriting_has_to_be_asked_for(tmp_path, run):
    given, there = put(tmp_path / "in.jsonl", CHAT), put(tmp_path / "there.jsonl", "mine")
    assert run("data", "convert", given, there, "--to", "alpaca", "--overwrite")[0] == 0
    assert json.loads(there.read_text()) == EXPECTED["alpaca"]


def test_a_format_can_be_forced(tmp_path, run):
    both = pair(1) | {"text": "Something else."}
    given, out = put(tmp_path / "in.jsonl", both), tmp_path / "out.jsonl"
    code, _, err = run("data", "convert", given, out, "--to", "messages")
    assert code == 1
    assert "No row of" in err
    assert "in.jsonl:1: the keys show both prompt_completion" in err
    assert not out.exists()
    arguments = ("--to", "messages", "--format", "prompt_completion")
    assert run("data", "convert", given, out, *arguments)[0] == 0
    assert [turn["content"] for turn in json.loads(out.read_text())["messages"]] == [
        "Question 1?", "Answer 1."
    ]  # fmt: skip


def test_packed_rows_are_converted(tmp_path, run):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(json.dumps(CHAT).encode()))
    code, *_ = run("data", "convert", tmp_path / "in.jsonl.gz", tmp_path / "o.jsonl", "--to",
                   "alpaca")  # fmt: skip
    assert code == 0


def test_documents_become_a_dataset_that_can_be_validated(folder, run):
    docs = folder / "docs"
    docs.mkdir()
    for name in ("Rivers", "Lakes", "Mountains"):
        sections = [
            f"## {name} of region {i}\n\n{name} of region {i} are formed over thousands of years "
            f"by water and ice number {i}. They change the land around them, and people have "
            f"lived near {name.lower()} for as long as there are records of region {i}.\n"
            for i in range(6)
        ]
        (docs / f"{name.lower()}.md").write_text(f"# {name}\n\n" + "\n".join(sections))
    code, out, _ = run("data", "from-documents", docs, "--out", "made")
    assert code == 0
    assert out.startswith("3 documents read, 0 files left out\n")
    assert out.endswith("train with: data=custom data.path=made\n")
    code, out, _ = run("validate", *JOB, "data.path=made")
    assert code == 0
    assert " 0 rejected" in out.partition("\n")[0]
    code, _, err = run("data", "from-documents", docs, "--out", "made")
    assert code == 2
    assert "--overwrite" in err
    code, _, err = run("data", "from-documents", "nowhere", "--out", "other")
    assert code == 2
    assert "nowhere" in err
    assert not (folder / "other").exists()


def test_the_help_on_documents_says_what_every_option_is(capsys):
    with pytest.raises(SystemExit):
        cli.main(["data", "from-documents", "--help"])
    said = capsys.readouterr().out
    options = BuildOptions(out=Path())
    for name in ("valid_fraction", "test_fraction", "seed", "min_quality", "chunk_words",
                 "max_file_bytes"):  # fmt: skip
        about = said.partition(f"  --{name.replace('_', '-')} ")[2].partition("\n  --")[0]
        assert " ".join(about.split()).endswith(f"default: {getattr(options, name)}")
    assert [kind for kind in KINDS if kind not in said] == []
    for word in ("Markdown", "PDF", "train.jsonl", "report.json", "examples:", "--subject TEXT"):
        assert word in said


@pytest.mark.parametrize(
    "argv", [["data", "convert", "a", "b", "--to", "x"], ["data", "list", "x"]]
)
def test_wrong_arguments_end_with_usage(run, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: mlx-ft" in capsys.readouterr().err
