"""What cannot be is refused at once: in one line, with exit code 2, before torch is imported."""

import json
import subprocess
import sys

REFUSED = (
    (["generate", "a", "--steps", "0"], "--steps 0"),
    (["generate", "a", "-n", "0"], "n = 0"),
    (["generate", "a", "-k", "6"], "k = 6"),
    (["generate", "a", "--rungs", "2"], "rungs = 2.0"),
    (["generate", "a", "--rungs", "x"], "--rungs 'x'"),
    (["generate", "a", "--policy", "best"], "policy best"),
    (["generate", "a", "--diversity", "2"], "diversity = 2"),
    (["generate", "a", "--evaluate", "nope"], "unknown evaluator 'nope'"),
    (["generate", "a", "--scorer", "preview:nope"], "unknown evaluator 'nope'"),
    (["generate", "a", "--until", "1"], "until = 1"),
    (["generate", "a", "--until", "1", "--confidence", "0.5"], "confidence: needs a plan"),
    (["generate", "a", "--rounds", "2"], "--rounds 2"),
    (["generate", ""], "prompt 1 is empty"),
    (["generate", "a", "--dtype", "fp8"], "--dtype 'fp8'"),
    (["generate", "a", "--image", "none.png"], "none.png"),
    (["generate", "a", "--nope"], "No such option: --nope"),
    (["collect", "--prompts", "none.txt", "--out", "d"], "none.txt"),
    (["collect", "--prompts", "none.txt", "--out", "d", "--engine", "slurm"], "--engine 'slurm'"),
    (["score", ".", "--evaluators", "scene-check"], "dataset.json"),
    (["train", "none", "--out", "p"], "none: there is no such file or folder"),
    (["train", ".", "--out", "p"], "dataset.json"),
    (["train", "none", "--out", "p", "--kind", "best"], "best"),
    (["evaluate", "none.npz", "--out", "r"], "none.npz: there is no such file or folder"),
    (["plan", "none.npz", "--budget", "40"], "none.npz: there is no such file or folder"),
    (["prompts", "--count", "0"], "--count 0"),
)
PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from probeselect.cli import main
for arguments in json.load(sys.stdin):
    sys.argv = ["probeselect", *arguments]
    said, code = io.StringIO(), 0
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue(), sorted({"torch", "diffusers", "transformers"} & set(sys.modules))]))
"""


def test_what_cannot_be_is_refused_before_torch_is_there(tmp_path):
    given = json.dumps([arguments for arguments, _ in REFUSED])
    run = subprocess.run([sys.executable, "-c", PROGRAM], input=given, capture_output=True, text=True, cwd=tmp_path)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(REFUSED), run.stderr
    for (arguments, says), (code, said, modules) in zip(REFUSED, answers, strict=True):
        assert (code, modules) == (2, []), (arguments, said)
        assert says in said and said.count("\n") == 1 and said.startswith("probeselect: "), (arguments, said)
