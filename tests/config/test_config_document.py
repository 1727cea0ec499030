from mlx_ft.config import conf_dir
from mlx_ft.config.document import PAGE, document, main
from mlx_ft.config.keys import keys


def test_the_page_is_current(capsys):
    assert (conf_dir().parent / PAGE).read_text("utf-8") == document()
    assert main(["--check"]) == 0


def test_every_key_choice_and_recipe_is_on_it():
    text = document()
    assert all(f"| `{name}` |" in text for name in keys())
    for path in conf_dir().glob("*/*.yaml"):
        if path.stem != "default":
            assert f"- `{path.stem}`" in text


def test_it_does_not_depend_on_the_environment(monkeypatch):
    before = document()
    monkeypatch.setenv("MLX_FT_CACHE", "/secret/place")
    assert document() == before


def test_what_only_the_default_recipe_sets_is_no_default_of_the_key():
    rows = {line.split("`")[1]: line for line in document().splitlines() if line.startswith("| `")}
    for name, without, recipes in (
        ("train.max_steps", "`null`", "130"),
        ("eval.max_rows", "`null`", "64"),
        ("data.metric", "`none`", "sql_execution"),
        ("data.path", "none", "builtin:geography_sql"),
    ):
        assert f"| {without}; `{recipes}` with `data=geography_sql` |" in rows[name]
    assert "| `1.0` |" in rows["train.epochs"]
    [choice] = [line for line in document().splitlines() if line.startswith("- `geography_sql`")]
    assert "`train.max_steps: 130`, `eval.max_rows: 64`" in choice
