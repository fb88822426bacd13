"""Sealed folders, leases and the collections that stand on them: killed, starved, stopped, and damaged byte by byte."""

import errno
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from kill_harness import (
    FEW,
    PROMPTS,
    StubEvaluator,
    check_each_group_once,
    ended,
    forked,
    killed_at_every_moment,
    operations_of,
    plant,
    reference,
    stub_collection,
    stub_make,
    tree_hash,
)
from msgspec import structs

from probeselect.collect.loop import collect
from probeselect.collect.score import score
from probeselect.core.errors import ProbeSelectError
from probeselect.data import sealed
from probeselect.data.config import PinnedPrompts
from probeselect.data.dataset import Dataset, pin
from probeselect.data.leases import Leases
from probeselect.data.owners import Owner
from probeselect.data.sealed import (
    MANIFEST,
    DamagedError,
    Manifest,
    canonical_json,
    read_manifest,
    seal,
    sha256,
    verify,
    write_synced,
)

STARVED = 3  # exit code of a run that the disk has stopped


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    """A folder in memory where there is such a thing: thousands of files are written and synced."""
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        return tmp_path
    folder = shm / f"probeselect-{os.getpid()}-{random.Random().getrandbits(32):08x}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def test_a_kill_before_and_in_every_operation_and_a_second_one_change_nothing(quick, monkeypatch):
    """The harness as a program goes on from there at random, 10,000 times or more."""
    monkeypatch.setattr("probeselect.data.leases._BEING_WRITTEN", 0.1)  # what a kill leaves empty is waited for
    expected, kills = reference(quick, FEW), 0
    for outcome in killed_at_every_moment(quick):
        assert outcome.hash == expected
        kills += outcome.kills
    assert kills >= 150
    check_each_group_once(quick / "dataset", FEW)
    assert {p.name for p in (quick / "dataset").iterdir()} == {"dataset.json", "shards", "scores"}


def test_the_harness_sees_a_shard_that_is_published_before_it_is_whole(quick, monkeypatch):
    """The kill test can fail: a writer that renames first and fills the folder afterwards is found out."""
    expected = reference(quick, FEW)

    def careless(folder, files, about):
        (folder / "images").mkdir(parents=True)
        for name, data in {**files, MANIFEST: sealed._manifest(files, about)}.items():
            write_synced(folder / name, data)
        return True

    monkeypatch.setattr("probeselect.data.shards.seal", careless)
    assert any(outcome.hash != expected for outcome in killed_at_every_moment(quick))


def test_every_file_is_synced_before_its_folder_is_published(tmp_path, monkeypatch):
    log: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(file):
        log.append(("fsync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def noted_rename(old, new):
        log.append(("rename", str(old)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    stub_collection(tmp_path)
    published = [(at, Path(path)) for at, (what, path) in enumerate(log) if what == "rename"]
    assert len(published) == 1 + 3 + 3  # dataset.json, shards, scores
    for at, written in published:
        final = written.with_name(re.match(r"\.(dataset\.json|shard-\d+)", written.name)[1])
        names = [final] if final.is_file() else [final, *final.rglob("*")]
        wanted = {str(written / name.relative_to(final)) for name in names}
        assert wanted <= {path for what, path in log[:at] if what == "fsync"}
        assert ("fsync", str(final.parent)) in log[at:]


class Small(Manifest, frozen=True, kw_only=True):
    """A manifest that says how many rows there are."""

    rows: int


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A sealed folder of few bytes, with a folder inside."""
    folder = tmp_path_factory.mktemp("small") / "shard"
    assert seal(folder, {"rows": b"some rows", "images/a.png": b"\x89PNG", "empty": b""}, Small(rows=2))
    return folder


def test_sealed_is_whole(small):
    verify(small)
    assert read_manifest(small, Small).rows == 2
    assert not seal(small, {"rows": b"others"}, Small(rows=6))
    assert read_manifest(small, Small).rows == 2  # the first one wins
    assert [path.name for path in small.parent.iterdir()] == ["shard"]


def test_a_flipped_byte_and_a_truncation_are_seen_wherever_they_are(quick):
    """At every byte of the manifest, and at every fifth of the files that it seals."""
    stub_collection(quick)
    shard = Dataset(quick).shard(0)
    tried = 0
    for path in [path for path in shard.rglob("*") if path.is_file()]:
        data = path.read_bytes()
        for at in range(0, len(data), 1 if path.name == MANIFEST else 5):
            for wrong in (data[:at], data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]):
                path.write_bytes(wrong)
                with pytest.raises(DamagedError, match=path.name):
                    verify(shard)
                tried += 1
        path.write_bytes(data + b"\0")
        with pytest.raises(DamagedError):
            verify(shard)
        path.unlink()
        with pytest.raises(DamagedError, match="is missing"):
            verify(shard)
        path.write_bytes(data)
        verify(shard)
    assert tried > 3500
    (shard / "surplus").touch()
    with pytest.raises(DamagedError, match="does not belong"):
        verify(shard)


def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(small, tmp_path):
    copy = shutil.copytree(small, tmp_path / "shard")
    (copy / MANIFEST).write_bytes((copy / MANIFEST).read_bytes().replace(b"\n", b"\n ", 1))
    with pytest.raises(DamagedError, match="digest"):
        verify(copy)
    content = {key: value for key, value in json.loads((small / MANIFEST).read_bytes()).items() if key != "sha256"}
    content["rows"] = 3
    (copy / MANIFEST).write_bytes(canonical_json({**content, "sha256": sha256(canonical_json(content))}))
    verify(copy)
    assert read_manifest(copy, Small).rows == 3  # a digest tells of accidents, not of forgery


@pytest.mark.parametrize("wrong", [b"", b"[]", b"{}", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_damage(small, tmp_path, wrong):
    copy = shutil.copytree(small, tmp_path / "shard")
    (copy / MANIFEST).write_bytes(wrong)
    with pytest.raises(DamagedError, match=MANIFEST):
        verify(copy)


def test_collect_repairs_what_is_damaged(tmp_path):
    stub_collection(tmp_path)
    expected, draw = tree_hash(tmp_path), random.Random(0)
    for path in sorted(path for name in ("shards", "scores") for path in (tmp_path / name).rglob("*.*")):
        data = path.read_bytes()
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x40]) + data[at + 1 :])
        stub_collection(tmp_path)
        assert len(list((tmp_path / "damaged").iterdir())) == 1  # set aside, not thrown away
        shutil.rmtree(tmp_path / "damaged")
        assert tree_hash(tmp_path) == expected


def test_a_repaired_shard_is_named(tmp_path):
    stub_collection(tmp_path)
    dataset = Dataset(tmp_path)
    (dataset.shard(1) / "rows.parquet").write_bytes(b"PAR1")
    (dataset.shard(2) / MANIFEST).unlink()
    how = {p.shard: (p.how, p.damage) for p in collect(dataset, PROMPTS, stub_make)}
    assert how[0] == ("found", "")
    assert how[1][0] == "made" and "shard-00001/rows.parquet: 4 bytes" in how[1][1]
    assert how[2][0] == "made" and "shard-00002/manifest.json: is missing" in how[2][1]


def test_a_full_disk_at_every_operation_leaves_whole_shards_and_names_the_path(quick):
    expected = reference(quick, FEW)

    def full(operation: str, first: object) -> None:
        where = [str(first)] if isinstance(first, str | os.PathLike) else []  # the kernel knows no name of an open file
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *where)

    codes = []
    for at in range(len(operations_of(quick / "count", quick))):
        folder = quick / f"full-{at}"
        codes.append(ended(forked(partial(_starved, folder, at, full))))
        for index in Dataset(folder).done() if (folder / "dataset.json").is_file() else ():
            verify(Dataset(folder).shard(index))
        assert not list(folder.rglob("*.partial"))
        if codes[-1] != 0:  # where the last one has to be cleared away, the disk may say what it likes
            assert ended(forked(partial(stub_collection, folder, FEW))) == 0
        assert tree_hash(folder) == expected
        shutil.rmtree(folder)
    assert set(codes) == {0, STARVED} and codes.count(STARVED) > 0.8 * len(codes) > 60


def _starved(folder: Path, at: int, full) -> None:
    plant(at, full)
    try:
        stub_collection(folder, FEW)
    except OSError as error:
        code = STARVED if error.errno == errno.ENOSPC and str(folder) in str(error) else 1
        if code != STARVED:
            print(f"operation {at}: {error!r} does not name a path", file=sys.stderr, flush=True)
        os._exit(code)


def test_two_collectors_one_of_them_stopped_make_each_group_once(tmp_path, monkeypatch):
    expected = reference(tmp_path)
    folder, log = tmp_path / "shared", tmp_path / "log"
    monkeypatch.setattr("probeselect.data.leases.SECONDS", 0.5)
    monkeypatch.setattr(Leases.__init__, "__defaults__", (0.5,))
    monkeypatch.setattr("probeselect.collect.loop.POLL_SECONDS", 0.05)

    def collector(name: str) -> None:
        dataset = pin(folder, Dataset(tmp_path / "reference").config)

        def slow_make(prompts):
            (tmp_path / f"{name}-is-at-work").touch()
            time.sleep(0.2)
            return stub_make(prompts)

        for progress in collect(dataset, PROMPTS, slow_make):
            with log.open("a") as file:
                file.write(f"{name} {progress.shard} {progress.how}\n")

    first = forked(lambda: collector("first"))
    while not (tmp_path / "first-is-at-work").exists():
        time.sleep(0.005)
    os.kill(first, signal.SIGSTOP)
    assert ended(forked(lambda: collector("second"))) == 0  # waits for the lease to lapse, then does it all
    os.kill(first, signal.SIGCONT)
    assert ended(first) == 0
    made = sorted(line.split()[1] for line in log.read_text().splitlines() if line.endswith("made"))
    assert made == ["0", "1", "2"]
    assert "first 0 elsewhere" in log.read_text()
    for _ in score(Dataset(folder), StubEvaluator()):
        pass
    assert tree_hash(folder) == expected
    check_each_group_once(folder)


def test_collectors_at_once_share_the_work(tmp_path):
    expected = reference(tmp_path)
    pids = [forked(lambda: stub_collection(tmp_path / "shared")) for _ in range(6)]
    assert [ended(pid) for pid in pids] == [0] * 6
    assert tree_hash(tmp_path / "shared") == expected


def test_a_lease_is_held_by_one_and_given_back(tmp_path):
    leases = Leases(tmp_path / "leases")
    with leases.taken("a") as ours, leases.taken("a") as again, leases.taken("b") as other:
        assert ours and other and not again
    with leases.taken("a") as ours:
        assert ours
    leases.sweep()
    assert not (tmp_path / "leases").exists()


def test_a_dead_holders_lease_lapses_at_once_and_a_living_ones_does_not(tmp_path):
    leases = Leases(tmp_path, seconds=30)

    def hold() -> None:
        with leases.taken("a"):
            time.sleep(60)

    pid = forked(hold)
    while not (tmp_path / "a").exists() or not (tmp_path / "a").read_text():
        time.sleep(0.005)
    with leases.taken("a") as ours:
        assert not ours
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    with leases.taken("a") as ours:
        assert ours


def test_a_lease_of_another_machine_lapses_by_age_alone(tmp_path):
    leases = Leases(tmp_path, seconds=30)
    (tmp_path / "a").write_text(f"{Owner('elsewhere', 1, 1)}\nx\n")
    with leases.taken("a") as ours:
        assert not ours
    long_ago = time.time() - 31
    os.utime(tmp_path / "a", (long_ago, long_ago))
    with leases.taken("a") as ours:
        assert ours


def test_owners(tmp_path):
    me = Owner.this_process()
    assert Owner.parse(str(me)) == me and not me.is_dead()
    assert Owner(me.machine, me.pid, me.began - 1).is_dead()  # the same process id, used again
    assert Owner.parse("nonsense") is None


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    stub_collection(tmp_path)
    config = Dataset(tmp_path).config
    changed = structs.replace(config, n=3, prompts=PinnedPrompts(5, "f"), arguments={"num_inference_steps": 20})
    with pytest.raises(ProbeSelectError) as caught:
        pin(tmp_path, changed)
    text = str(caught.value)
    assert (
        "n was 2, now 3" in text
        and 'prompts.sha256 was "0", now "f"' in text
        and "num_inference_steps was null, now 20" in text
    )
    assert "dataset.json" in text and "\n" not in text
    pin(tmp_path, structs.replace(config, model="/elsewhere"))  # a folder may lie elsewhere


@pytest.mark.parametrize("wrong", [b"", b"{}", b'{"format": 1}', b"\xff\xfe", b"[]", b'{"format": 2, "n": 1}'])
def test_what_is_no_configuration_is_named(tmp_path, wrong):
    (tmp_path / "dataset.json").write_bytes(wrong)
    with pytest.raises(ProbeSelectError, match=r"dataset\.json"):
        Dataset(tmp_path)
