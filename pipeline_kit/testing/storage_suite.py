"""The conformance suite for storages: what jobs and readers build on."""

from __future__ import annotations

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Any, ClassVar, TypeVar

from pipeline_kit.errors import InputError
from pipeline_kit.files.storage.base import BLOCK, Conflict, FileStatus, Storage, Version, join_key

T = TypeVar("T")
WRITERS = 8
ODD_NAMES = ("a b.txt", "ä%20ü.txt", "x[1].txt", "y+~=&.txt", "漢字.txt", "a'b.txt")


class StorageSuite:
    """Checks a storage, which derives from :class:`pipeline_kit.kit.Storage`; a test class derives from this one.

    :cvar swaps_alone: whether :meth:`~pipeline_kit.kit.Storage.swap` alone decides between several writers; False
        where a lock must be held, as in a folder of this machine.
    """

    swaps_alone: ClassVar[bool] = True

    def fresh(self) -> tuple[Storage, str]:
        """Return the storage, and the key of a folder in it where nothing is."""
        raise NotImplementedError

    def prepare(self, key: str) -> None:
        """Make the folder that `key` lies in, where a storage has folders to be made."""

    def write(self, storage: Storage, key: str, data: bytes) -> None:
        """Write a file."""
        self.prepare(key)
        with storage.writer(key) as file:
            file.write(data)

    def test_a_file_is_created_once(self) -> None:
        """Creating what is there changes nothing: the same bytes are success, others a conflict that names both."""
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        assert storage.create(key, b"first") is True, "create returned no True, where nothing was"
        assert storage.create(key, b"first") is False, "create returned no False for the same bytes"
        found = _raises(Conflict, lambda: storage.create(key, b"other"), "create over other bytes")
        for data in (b"first", b"other"):
            assert sha256(data).hexdigest() in str(found), f"the conflict does not name the sha256 of {data!r}: {found}"
        assert storage.read(key) == b"first", "create wrote over what was there"

    def test_one_of_many_creates(self) -> None:
        """Of several that create a file at once one gets True, and its bytes are there."""
        storage, folder = self.fresh()
        key, contents = join_key(folder, "a"), [b"%d" % n * 1000 for n in range(WRITERS)]
        made = _at_once(lambda data: storage.create(key, data), contents)
        assert made.count(True) == 1, f"{made.count(True)} of {WRITERS} writers got True for the file"
        assert storage.read(key) == contents[made.index(True)], "the bytes are not those of the one that created it"

    def test_a_version_is_swapped(self) -> None:
        """A file is replaced by who knows its version; None stands for no file."""
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        _raises(Conflict, lambda: storage.swap(key, b"0", ("none",)), "swap of a version where nothing is")
        first = storage.swap(key, b"1", None)
        assert first == storage.status(key).version, "swap returned another version than there is"
        _raises(Conflict, lambda: storage.swap(key, b"2", None), "swap of no file, where there is one")
        second = storage.swap(key, b"2", first)
        _raises(Conflict, lambda: storage.swap(key, b"3", first), "swap of an old version")
        _raises(Conflict, lambda: storage.swap(key, b"2", first), "swap of an old version for the bytes that are there")
        assert (storage.read(key), storage.status(key).version) == (b"2", second), "swap changed what it must not"

    def test_one_of_many_swaps(self) -> None:
        """Of several that swap one version at once, one succeeds."""
        if not self.swaps_alone:
            return
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        for version in (None, storage.swap(f"{key}2", b"", None)):
            name = key if version is None else f"{key}2"
            contents = [b"%d" % n for n in range(WRITERS)]
            done = _at_once(partial(_swap, storage, name, version), contents)
            won = [n for n, outcome in enumerate(done) if outcome is not None]
            assert len(won) == 1, f"{len(won)} of {WRITERS} writers swapped the same version"
            assert storage.read(name) == contents[won[0]], "the bytes are not those of the one that swapped"

    def test_a_status_tells_versions_apart(self) -> None:
        """Kind and size are right, and the version is another one when the content is."""
        storage, folder = self.fresh()
        key = join_key(folder, "sub", "a")
        _raises(FileNotFoundError, lambda: storage.status(key), "status")
        assert storage.kind(key) is None, "kind of a file that is not there is not None"
        seen = set()
        for data in (b"12", b"21", b"", b"123"):
            self.write(storage, key, data)
            found = storage.status(key)
            assert (found.kind, found.size) == ("file", len(data)), f"the status of {len(data)} bytes is {found}"
            seen.add(found.version)
            assert storage.files(join_key(folder, "sub"))["a"] == found, "files and status disagree"
            assert storage.read(key, found.version) == data
        assert len(seen) == 4, "two contents have the same version"
        assert [storage.kind(name) for name in (folder, join_key(folder, "sub"))] == ["folder", "folder"]

    def test_a_file_is_read_from_any_place(self) -> None:
        """Reading, seeking and the lines of a file of several blocks are those of the same bytes in memory."""
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        data = b"".join(b"line %d of some text\n" % n for n in range(BLOCK // 16))
        self.write(storage, key, data)
        assert len(data) > BLOCK, "the test needs more than a block"
        with storage.open(key) as stream, io.BytesIO(data) as memory:
            assert stream.seekable(), "the stream cannot seek"
            for place in (0, 1, BLOCK - 3, BLOCK, len(data) - 7, len(data), len(data) + 5, 17):
                for count in (1, 10, 70_000):
                    assert stream.seek(place) == memory.seek(place), f"seek({place})"
                    assert stream.read(count) == memory.read(count), f"{count} bytes at {place} are others"
                    assert stream.tell() == memory.tell(), f"tell() after {count} bytes at {place}"
            assert (stream.seek(-9, io.SEEK_END), stream.readline()) == (
                memory.seek(-9, io.SEEK_END),
                memory.readline(),
            )
            stream.seek(3)
            assert stream.read() == data[3:], "read() to the end returned something else"
        with storage.open(key) as stream:
            assert sum(map(len, stream)) == len(data), "the lines are not all there"
        assert storage.read(key) == data, "read(key) returned something else"

    def test_two_versions_are_never_mixed(self) -> None:
        """Opening by an old version is refused, and a file that changes while it is read is an error or the old one."""
        storage, folder = self.fresh()
        key, old, new = join_key(folder, "a"), b"o" * (2 * BLOCK), b"n" * (2 * BLOCK)
        self.write(storage, key, old)
        version = storage.status(key).version
        with storage.open(key, version) as stream:
            assert stream.read(10) == old[:10]
            self.write(storage, key, new)
            try:
                rest = stream.read()
            except (InputError, OSError):
                rest = old[10:]
        assert rest == old[10:], "a file that was replaced while it was read came as a mix of two versions"
        for read in (storage.open, storage.read):
            _raises(InputError, partial(read, key, version), "reading an old version")
        assert storage.read(key, storage.status(key).version) == new, "the new version cannot be read"

    def test_a_file_appears_when_it_is_complete(self) -> None:
        """Nothing is seen before a writer's body ends, and nothing at all if it fails; then it replaces what was."""
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        with storage.writer(key) as file:
            file.write("é")
            file.write(bytearray(b"\x00") * 100_000)
            assert storage.kind(key) is None, "a file is there before it is complete"
        assert storage.read(key) == "é".encode() + bytes(100_000), "what was written is not what is read"
        with suppress(ZeroDivisionError), storage.writer(key) as file:
            file.write(b"half")
            raise ZeroDivisionError
        assert storage.status(key).size == 100_002, "a writer that failed changed the file"
        with storage.writer(key):
            pass
        assert storage.read(key) == b"", "an empty file did not replace another"
        assert list(storage.files(folder)) == ["a"], "something else is left in the folder"

    def test_a_folder_is_listed(self) -> None:
        """All that lies right in a folder by name, sorted; folders too; what lies deeper or beside it not."""
        storage, folder = self.fresh()
        names = ("b-1", "b/x", "b/y", "b.1", "10", "9", "Z", "é", "c/d/e", ".hidden")
        for name in names:
            self.write(storage, join_key(folder, name), name.encode())
        self.write(storage, join_key(f"{folder}-beside", "x"), b"")
        found = storage.files(folder)
        assert list(found) == sorted({name.partition("/")[0] for name in names}), f"files() returned {list(found)}"
        kinds = {name: status.kind for name, status in found.items()}
        assert {name for name, kind in kinds.items() if kind == "folder"} == {"b", "c"}, f"the kinds are {kinds}"
        assert (found["é"].size, found["b-1"].size) == (2, 3), "the sizes are others"
        for after in ("a", "b", "b-1", "b/x", "zzz"):
            rest = list(storage.files(folder, after=after))
            assert rest == [name for name in found if name > after], f"files(after={after!r}) returned {rest}"
        assert list(storage.files(f"{folder}/")) == list(found), "a slash behind the folder makes a difference"
        assert storage.files(join_key(folder, "none")) == {}, "files() of a folder that is not there is not empty"
        storage.delete(join_key(folder, "9"))
        assert "9" not in storage.files(folder), "a file that was deleted is listed"

    def test_patterns_find_files(self) -> None:
        """``*`` and ``[..]`` stay in a folder, ``**`` goes through all; hidden names are found by their dot alone."""
        storage, folder = self.fresh()
        for name in ("b.txt", "a.txt", "c.csv", "x/d.txt", "x/y/e.txt", ".h.txt", "x[1]/f.txt", "xx/a.txt"):
            self.write(storage, join_key(folder, name), b"")
        cases = {
            "*.txt": ["a.txt", "b.txt"],
            "[bc].*": ["b.txt", "c.csv"],
            "[!a].txt": ["b.txt"],
            "*/*.txt": ["x/d.txt", "x[1]/f.txt", "xx/a.txt"],
            "x/*": ["x/d.txt", "x/y"],
            "**/*.txt": ["a.txt", "b.txt", "x/d.txt", "x/y/e.txt", "x[1]/f.txt", "xx/a.txt"],
            "x/**/e.txt": ["x/y/e.txt"],
            "x[[]1]/*": ["x[1]/f.txt"],
            ".*": [".h.txt"],
            "*.none": [],
            "none/*": [],
        }
        for pattern, names in cases.items():
            found = storage.list(join_key(folder, pattern))
            assert found == [join_key(folder, name) for name in names], f"{pattern} found {found}"

    def test_a_file_is_deleted(self) -> None:
        """What is deleted is gone; deleting what is not there raises nothing."""
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        self.write(storage, key, b"1")
        storage.delete(key)
        storage.delete(key)
        assert storage.kind(key) is None, "a file that was deleted is there"
        assert storage.list(f"{key}*") == [], "a file that was deleted is found"
        assert storage.create(key, b"2") is True, "a file that was deleted cannot be created"

    def test_odd_names_stay_as_they_are(self) -> None:
        """Spaces, percent signs, brackets and letters of all kinds in names."""
        storage, folder = self.fresh()
        for name in ODD_NAMES:
            storage.create(join_key(folder, name), name.encode())
        assert list(storage.files(folder)) == sorted(ODD_NAMES), f"the names came back as {list(storage.files(folder))}"
        for name in ODD_NAMES:
            assert storage.read(join_key(folder, name)) == name.encode(), f"{name} holds something else"

    def test_what_is_missing_is_an_error_of_python(self) -> None:
        """Reading what is not there raises FileNotFoundError."""
        storage, folder = self.fresh()
        key = join_key(folder, "none")
        for name, call in (("status", storage.status), ("open", storage.open), ("read", storage.read)):
            _raises(FileNotFoundError, partial(call, key), name)

    def test_streams_do_not_disturb_each_other(self) -> None:
        """Several threads read one file, each from its own place."""
        storage, folder = self.fresh()
        key, data = join_key(folder, "a"), bytes(range(256)) * 1000
        self.write(storage, key, data)

        def part(start: int) -> bytes:
            with storage.open(key) as stream:
                stream.seek(start)
                return stream.read(5000) + stream.read(5000)

        starts = range(0, 200_000, 20_000)
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(part, starts))
        assert parts == [data[start : start + 10_000] for start in starts], "a thread read what another one asked for"

    def test_kinds_and_types(self) -> None:
        """It is a storage, and its answers are of the promised types."""
        storage, folder = self.fresh()
        key = join_key(folder, "a")
        assert isinstance(storage, Storage)
        version: Version = storage.swap(key, b"1", None)
        assert isinstance(version, tuple), f"a version is a tuple, not {version!r}"
        assert all(isinstance(part, int | str) for part in version), f"a version holds numbers and texts: {version!r}"
        assert isinstance(storage.status(key), FileStatus)


def _swap(storage: Storage, key: str, version: Version | None, data: bytes) -> Version:
    return storage.swap(key, data, version)


def _raises(wanted: type[Exception], call: Callable[[], object], what: str) -> Exception:
    try:
        call()
    except wanted as error:
        return error
    raise AssertionError(f"{what} raises no {wanted.__name__}")


def _at_once(write: Callable[[bytes], T], contents: list[bytes]) -> list[T | None]:
    """Return what `write` returned for each; None where it met a conflict."""

    def attempt(data: bytes) -> Any:
        try:
            return write(data)
        except Conflict:
            return None

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(attempt, contents))
