"""Downloads against a server on this machine that serves, refuses, stalls, cuts off, and lies."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import shutil
import socket
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers_download import HTML, Handler, Server

from bnlab.data.dataset import datasets
from bnlab.data.download import fetch
from bnlab.data.sources import Archive, File
from bnlab.errors import ConfigError, EnvironmentFault


@pytest.fixture
def server(monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as made:
        made.files, made.asked, made.script, made.done = {}, [], ["serve"], threading.Event()
        made.url = f"http://127.0.0.1:{made.server_port}/some/where"
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.done.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def set_of_two(server, monkeypatch):
    """Two packed files, on the server and as MNIST's source; returns what unpacking must give."""
    wanted, archives = {}, []
    for number in (1, 2):
        data = bytes(range(256)) * 40 * number
        packed = gzip.compress(data, mtime=0) + bytes(1000)  # zeros after the end are allowed, and make it long
        server.files[f"part{number}.gz"] = packed
        wanted[f"Two/raw/part{number}"] = data
        file = File(f"Two/raw/part{number}", len(data))
        md5 = hashlib.md5(packed).hexdigest()
        archives.append(Archive(f"part{number}.gz", len(packed), md5, "Two/raw", (file,)))
    source = dataclasses.replace(datasets["mnist"].source, mirrors=(server.url + "/",), archives=tuple(archives))
    monkeypatch.setattr(datasets["mnist"], "source", source)
    return wanted


def left_over(root):
    return sorted(path.name for path in root.rglob("*") if path.suffix in (".part", ".tmp"))


def holds(root, wanted):
    return all((root / path).read_bytes() == data for path, data in wanted.items())


def test_a_whole_fetch_and_nothing_the_second_time(server, set_of_two, tmp_path):
    told = []
    root = tmp_path / "deep" / "data"
    assert fetch("mnist", root, report=lambda done, total: told.append((done, total))) == root
    assert holds(root, set_of_two)
    total = sum(map(len, server.files.values()))
    assert told == sorted(told)
    assert told[-1] == (total, total)
    assert left_over(root) == []
    assert datasets["mnist"].source.status(root).state == "present"
    assert len(server.asked) == 2
    fetch("mnist", root)
    assert len(server.asked) == 2


def test_only_what_is_missing_is_fetched_and_an_archive_put_there_is_used(server, set_of_two, tmp_path):
    fetch("mnist", tmp_path)
    (tmp_path / "Two/raw/part1").unlink()
    (tmp_path / "Two/raw/part2").write_bytes(b"ab")
    (tmp_path / "Two/raw/part2.gz").write_bytes(b"spoilt")
    assert datasets["mnist"].source.status(tmp_path).state == "damaged"
    server.asked.clear()
    fetch("mnist", tmp_path)
    assert holds(tmp_path, set_of_two)
    assert [path for path, _ in server.asked] == ["/some/where/part2.gz"]


def test_a_file_of_the_users_is_kept_until_another_is_there(server, set_of_two, tmp_path):
    mine = tmp_path / "Two/raw/part1.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    server.script = ["gone"]
    with pytest.raises(
        EnvironmentFault, match=r"to lie at .*part1\.gz; what lies there is something else, and is kept"
    ):
        fetch("mnist", tmp_path)
    assert mine.read_bytes() == b"mine"
    server.script = ["serve"]
    fetch("mnist", tmp_path)
    assert mine.read_bytes() == server.files["part1.gz"]


def with_checksums(monkeypatch, wanted):
    source = datasets["mnist"].source
    archives = [
        dataclasses.replace(
            archive,
            files=tuple(
                dataclasses.replace(file, md5=hashlib.md5(wanted[file.path]).hexdigest()) for file in archive.files
            ),
        )
        for archive in source.archives
    ]
    monkeypatch.setattr(datasets["mnist"], "source", dataclasses.replace(source, archives=tuple(archives)))


def test_an_archive_packed_by_somebody_else_is_used_for_what_it_holds(server, set_of_two, tmp_path, monkeypatch):
    with_checksums(monkeypatch, set_of_two)
    for path, data in set_of_two.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}.gz").write_bytes(gzip.compress(data, 1))
    fetch("mnist", tmp_path)
    assert holds(tmp_path, set_of_two)
    assert server.asked == []
    for content in (gzip.compress(data[:-1] + b"?"), gzip.compress(bytes(10_000_000)), b"", gzip.compress(data)[:-9]):
        (tmp_path / path).unlink()
        (tmp_path / f"{path}.gz").write_bytes(content)
        fetch("mnist", tmp_path)
        assert holds(tmp_path, set_of_two)
        assert left_over(tmp_path) == []


def test_files_of_another_content_are_fetched_anew(server, set_of_two, tmp_path, monkeypatch):
    with_checksums(monkeypatch, set_of_two)
    for path, data in set_of_two.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data[:-1] + b"?")
    fetch("mnist", tmp_path)
    assert holds(tmp_path, set_of_two)


def test_of_several_fetches_at_once_one_downloads_and_the_others_wait(server, set_of_two, tmp_path):
    server.script = ["slow"]
    waited: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        ends = [pool.submit(fetch, "mnist", tmp_path, waiting=lambda: waited.append(1)) for _ in range(3)]
        assert [end.result() for end in ends] == [tmp_path] * 3
    assert holds(tmp_path, set_of_two)
    assert len(server.asked) == 2
    assert len(waited) == 2
    assert left_over(tmp_path) == []


def test_a_cut_off_download_goes_on_by_itself(server, set_of_two, tmp_path):
    server.script = ["cut", "serve"]
    fetch("mnist", tmp_path)
    assert holds(tmp_path, set_of_two)
    half = len(server.files["part1.gz"]) // 2
    assert [asked for _, asked in server.asked] == [None, f"bytes={half}-", None]


def test_a_server_that_always_cuts_off_leaves_a_part_to_go_on_from(server, set_of_two, tmp_path):
    server.script = ["cut"]
    with pytest.raises(EnvironmentFault, match=r"cut off after [\d,]+ of [\d,]+ bytes"):
        fetch("mnist", tmp_path)
    assert left_over(tmp_path) == ["part1.gz.part"]
    server.script = ["serve"]
    server.asked.clear()
    fetch("mnist", tmp_path)
    assert server.asked[0][1] is not None
    assert holds(tmp_path, set_of_two)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("word", ["no range", "serve"])
def test_a_part_is_completed_whether_or_not_the_server_knows_ranges(word, server, set_of_two, tmp_path):
    part = tmp_path / "Two/raw/part1.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["part1.gz"][:70])
    server.script = [word]
    fetch("mnist", tmp_path)
    assert server.asked[0][1] == "bytes=70-"
    assert holds(tmp_path, set_of_two)


@pytest.mark.parametrize("length", [70, 100_000, None])
def test_a_part_of_something_else_is_thrown_away(length, server, set_of_two, tmp_path):
    part = tmp_path / "Two/raw/part1.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"?" * (len(server.files["part1.gz"]) if length is None else length))
    fetch("mnist", tmp_path)
    assert holds(tmp_path, set_of_two)


def test_a_complete_part_needs_no_server(server, set_of_two, tmp_path):
    part = tmp_path / "Two/raw/part1.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files["part1.gz"])
    fetch("mnist", tmp_path)
    assert [path for path, _ in server.asked] == ["/some/where/part2.gz"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("gone", "HTTP status 404"),
        ("html", f"checksum differs: {len(HTML)} bytes of HTML with MD5 {hashlib.md5(HTML).hexdigest()}; removed"),
        ("garbage", r"checksum differs: [\d,]+ bytes with MD5 [0-9a-f]{32}; removed"),
        ("long", r"checksum differs: 3 bytes with MD5 [0-9a-f]{32}; removed"),
        ("endless", r"checksum differs: [\d,]+ bytes with MD5 [0-9a-f]{32}; removed"),
        ("silent", r"no answer in 0\.3 s"),
        ("stall", r"stalled: nothing came for 0\.3 s"),
    ],
)
def test_failures_name_file_url_size_checksum_path_and_advice(word, reason, server, set_of_two, tmp_path):
    server.script = [word]
    with pytest.raises(EnvironmentFault, match=reason) as caught:
        fetch("mnist", tmp_path, timeout=0.3)
    lines = str(caught.value).splitlines()
    archive = datasets["mnist"].source.archives[0]
    assert len(lines) == 3
    assert lines[0].startswith(f"mnist: could not fetch {server.url}/part1.gz: ")
    for word_there in (f"{archive.size:,} bytes", archive.md5, str(tmp_path / "Two/raw/part1.gz")):
        assert word_there in lines[1]
    assert "data=digits" in lines[2]
    assert left_over(tmp_path) == (["part1.gz.part"] if word == "stall" else [])
    assert not (tmp_path / "Two/raw/part1").exists()


def test_another_range_than_asked_for_is_refused(server, set_of_two, tmp_path):
    server.script = ["cut", "another range"]
    with pytest.raises(EnvironmentFault, match="another range than the one asked for"):
        fetch("mnist", tmp_path)


def test_offline(set_of_two, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(EnvironmentFault, match=rf"{url}/part1.gz: no connection \(Connection refused\)"):
            fetch("mnist", tmp_path, mirror=url)


def test_no_such_host(set_of_two, tmp_path, monkeypatch):
    def lookup(*arguments, **keys):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EnvironmentFault, match=r"no connection \(Name or service not known\)"):
        fetch("mnist", tmp_path, mirror="http://nowhere.invalid")


def test_mirrors_are_tried_in_order_and_one_given_replaces_them(server, set_of_two, tmp_path, monkeypatch):
    source = dataclasses.replace(datasets["mnist"].source, mirrors=("http://127.0.0.1:9", server.url))
    monkeypatch.setattr(datasets["mnist"], "source", source)
    fetch("mnist", tmp_path)
    assert holds(tmp_path, set_of_two)
    server.script = ["gone"]
    with pytest.raises(EnvironmentFault) as caught:
        fetch("mnist", tmp_path / "other", mirror=server.url)
    assert "127.0.0.1:9/" not in str(caught.value)
    assert f"{server.url}/part1.gz: HTTP status 404" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("digits", {}, "digits: nothing to download"),
        ("folder", {}, "folder: nothing to download"),
        ("cifar11", {}, "no such data set; did you mean cifar10"),
        ("mnist", {"mirror": "file:///etc"}, "mirror=file:///etc: must begin with http"),
    ],
)
def test_requests_that_make_no_sense(name, keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        fetch(name, tmp_path / "new", **keys)
    assert not (tmp_path / "new").exists()


def test_what_cannot_be_fetched_is_not_offered(tmp_path):
    with pytest.raises(ConfigError) as error:
        fetch("foo", tmp_path)
    fetched = [name for name in datasets if datasets[name].source.archives]
    assert str(error.value) == f"foo: no such data set\nthere are: {', '.join(fetched)}"
    assert "folder" not in fetched


def test_too_little_space_is_told_before_the_download(server, set_of_two, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(EnvironmentFault, match=r"no space in .*: [\d,]+ bytes needed, 10 free"):
        fetch("mnist", tmp_path)
    assert server.asked == []


def test_a_root_that_cannot_be_written(set_of_two, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"mnist: cannot write .*file"):
        fetch("mnist", tmp_path / "file")


def packed(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = tarfile.SYMTYPE, content[0]
                tar.addfile(member)
    return stream.getvalue()


def tar_source(server, monkeypatch, members, files):
    data = packed(members)
    server.files["all.tar.gz"] = data
    archive = Archive("all.tar.gz", len(data), hashlib.md5(data).hexdigest(), "", files)
    source = dataclasses.replace(datasets["cifar10"].source, mirrors=(server.url,), archives=(archive,))
    monkeypatch.setattr(datasets["cifar10"], "source", source)


def test_a_tar_gives_the_files_expected_and_no_others(server, tmp_path, monkeypatch):
    members = [("../evil", b"x"), ("/tmp/evil", b"x"), ("in/one", b"1"), ("in/two", b"22"), ("in/more", b"333")]
    tar_source(server, monkeypatch, members, (File("in/one", 1), File("in/two", None)))
    root = tmp_path / "root"
    fetch("cifar10", root)
    there = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert there - {".cifar10.lock"} == {"all.tar.gz", "one", "two"}  # some versions of filelock remove the lock
    assert (root / "in/two").read_bytes() == b"22"


def test_a_link_in_a_tar_is_not_taken_for_a_file(server, tmp_path, monkeypatch):
    tar_source(server, monkeypatch, [("in/one", ("/etc/hostname",))], (File("in/one", None),))
    with pytest.raises(EnvironmentFault, match=r"all\.tar\.gz: holds no in/one"):
        fetch("cifar10", tmp_path)
    assert not (tmp_path / "in/one").exists()


def test_a_member_of_another_size_is_told(server, tmp_path, monkeypatch):
    tar_source(server, monkeypatch, [("in/one", b"1")], (File("in/one", 2),))
    with pytest.raises(EnvironmentFault, match="1 bytes, expected 2 after unpacking"):
        fetch("cifar10", tmp_path)
