"""
Opening an image, and finding, opening and verifying its parents.

A parent locator is untrusted input.  A relative path is followed; absolute ones only into folders
that the caller allows; every candidate must be a regular file, have the DataWriteGuid that the
child remembers and the child's logical sector size.  The first one that fits is the parent.
"""

from __future__ import annotations

import contextlib
import ntpath
import os
import posixpath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pyvhdx._core.findings import corrupt
from pyvhdx._core.locator import ParentLocator, read_locator
from pyvhdx._core.parent_paths import Candidate, candidates, place_of
from pyvhdx._core.recover import Hints
from pyvhdx.errors import (
    ImageError,
    LockedError,
    LogPendingError,
    ParentCycleError,
    ParentError,
    ParentMismatchError,
    ParentNotFoundError,
    RequestError,
)
from pyvhdx.format.constants import IDENTIFIER_SIGNATURE, MAX_CHAIN_DEPTH, PARENT_LOCATOR, ZERO_GUID
from pyvhdx.image import VHDXImage
from pyvhdx.storage import LocalFile, can_seek, file_behind, open_file_object, open_local, refuse_no_file
from pyvhdx.storage.locks import READER, WRITER
from pyvhdx.storage.wrapper import is_storage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from uuid import UUID

    from pyvhdx._types import PathLike, Source
    from pyvhdx.storage import Storage

ParentChoice: TypeAlias = "Literal['auto', False] | PathLike | VHDXImage | Callable[[ParentLocator], Any]"

_MODES = {"r": "r", "rb": "r", "r+": "r+", "r+b": "r+", "rb+": "r+"}
_FLAVOUR = ntpath if os.name == "nt" else posixpath


class OpenOptions(NamedTuple):
    """How the members of a chain are found and opened."""

    search: tuple[str, ...]
    allow_absolute: tuple[str, ...]
    within: str | None
    verify_parent: bool
    log: str
    lock: bool
    salvage: bool = False
    write: bool = False


def open(
    source: Source,
    mode: str = "r",
    *,
    parent: ParentChoice = "auto",
    search: Iterable[PathLike] = (),
    allow_absolute: Iterable[PathLike] = (),
    within: PathLike | None = None,
    verify_parent: bool = True,
    log: str = "auto",
    salvage: bool = False,
    lock: bool = True,
    sync: bool = True,
) -> VHDXImage:
    """
    Open a VHDX image, with the parents that it needs, and return it as a file-like object.

    *source* is a path, or a seekable binary file object or a `pyvhdx.testing.Storage`, which are never
    closed here.  *mode* is ``"r"``, or ``"r+"`` for
    reading and writing; ``"rb"``, ``"r+b"`` and ``"rb+"`` mean the same.  Parents are opened for
    reading only.

    *parent*: ``"auto"`` follows the parent locator (MS-VHDX 2.6.2.6); a path or an open `VHDXImage` is
    taken instead; a callable gets the `ParentLocator` of each child in turn and returns a path, a file
    object, an open image or None; False opens the file alone.  *search* names more folders in which the
    parent's file name is looked for.  Absolute paths of a locator are followed only into the folders
    named in *allow_absolute*; with *within* every parent's real path must lie in that folder.  A parent
    must have the DataWriteGuid that the child remembers, unless *verify_parent* is False, which is for
    reading only.

    *log*: ``"auto"`` replays a pending log, with ``"r"`` in memory, which leaves the file as it is, and
    with ``"r+"`` into the file; ``"refuse"`` raises `LogPendingError`.  With *salvage*, for reading only, a
    file is opened that is refused otherwise, and so are its parents: what is certain is read, the rest
    is ``"unreadable"`` in `extents`, a read there raises, and `warnings` says what was wrong and what was
    guessed; a parent that is not found is done without.  *lock* keeps other programs
    out as far as this use asks for it, with the locks that QEMU uses (Linux) or share modes (Windows).
    ``sync=False`` leaves out the durability barriers, for images that a power cut may take.

    Raises `NotVHDXError`, `CorruptImageError`, `UnsupportedImageError`, `LogPendingError`,
    `ParentNotFoundError`, `ParentMismatchError`, `ParentCycleError`, `LockedError`, `RequestError`,
    and `OSError` where a file cannot be opened or read, or not written.
    """
    if _MODES.get(mode) is None:
        raise RequestError(f'mode is {mode!r}, and must be "r" or "r+"')
    write = _MODES[mode] == "r+"
    if write and not verify_parent:
        raise RequestError("verify_parent=False is for reading only: what is written belongs to one parent")
    if write and salvage:
        raise RequestError("salvage=True is for reading only: a broken file is repaired, not written to")
    options = options_of(
        search=search,
        allow_absolute=allow_absolute,
        within=within,
        verify_parent=verify_parent,
        log=log,
        salvage=salvage,
        lock=lock,
        write=write,
    )
    return _open_chain(source, parent, options, Hints() if salvage else None, sync=sync)


def open_salvaged(source: Source, hints: Hints, **how: Any) -> VHDXImage:
    """Open for reading what `open` opens with ``salvage=True``, with *hints* for the image itself."""
    parent = how.pop("parent", "auto")
    return _open_chain(source, parent, options_of(salvage=True, **how), hints, sync=False)


def storages_of(image: VHDXImage) -> list[Storage]:
    """Return where an image and its parents are stored, as `VHDXImage.chain` has them."""
    return [member._file.raw for member in image.chain]


def _open_chain(
    source: Source, parent: ParentChoice, options: OpenOptions, hints: Hints | None, *, sync: bool
) -> VHDXImage:
    reopen = None
    if isinstance(source, (str, os.PathLike)) and not options.write and hints in (None, Hints()):
        named = (
            os.path.abspath(parent) if isinstance(parent, (str, os.PathLike)) and parent != "auto" else parent
        )
        reopen = (_unpickle, (os.path.abspath(source), named, options))
    image = _open_file(source, options, reopen, hints=hints)
    try:
        if parent is not False:
            _attach_parents(image, parent, options._replace(write=False))
        if options.write:
            image._make_writable(sync=sync)
    except BaseException:
        image.close()
        raise
    return image


def options_of(
    *,
    search: Iterable[PathLike] = (),
    allow_absolute: Iterable[PathLike] = (),
    within: PathLike | None = None,
    verify_parent: bool = True,
    log: str = "auto",
    salvage: bool = False,
    lock: bool = True,
    write: bool = False,
) -> OpenOptions:
    """Return what `open` was asked for, its folders made absolute; raise `RequestError` for what cannot be."""
    if log not in ("auto", "refuse"):
        raise RequestError(f'log is {log!r}, and must be "auto" or "refuse"')
    return OpenOptions(
        search=tuple(map(os.path.abspath, _folders_of("search", search))),
        allow_absolute=_both_names(_folders_of("allow_absolute", allow_absolute)),
        within=None if within is None else _within(within),
        verify_parent=verify_parent,
        log=log,
        salvage=salvage,
        lock=lock,
        write=write,
    )


def _folders_of(name: str, folders: Iterable[PathLike] | PathLike) -> list[PathLike]:
    """One folder is as good as a list of one; a string is no list of letters."""
    if isinstance(folders, (str, os.PathLike)):
        return [folders]
    try:
        listed = list(folders)
    except TypeError:
        listed = [folders]  # type: ignore[list-item]  # nothing of the kind, as is said next
    for folder in listed:
        if not isinstance(folder, (str, os.PathLike)):
            raise RequestError(f"{name} is {folders!r}, and must be a list of folders")
    return listed


def _both_names(folders: list[PathLike]) -> tuple[str, ...]:
    """Return each folder as it was named, and with links resolved."""
    named = [os.path.abspath(os.fspath(folder)) for folder in folders]
    return tuple(dict.fromkeys([*named, *map(os.path.realpath, named)]))


def _within(folder: Any) -> str:
    if not isinstance(folder, (str, os.PathLike)) or not os.path.isdir(folder):
        raise RequestError(f"within is {str(folder)!r}, and must be a folder")
    return os.path.realpath(os.fspath(folder))


def _unpickle(path: str, parent: ParentChoice, options: OpenOptions, position: int) -> VHDXImage:
    how = options._asdict()
    del how["write"]
    image = open(path, parent=parent, **how)
    image.seek(position)
    return image


def is_vhdx(source: Source) -> bool:
    """
    Return whether *source*, a path or a binary file object, begins like a VHDX file.

    Eight bytes are read, and the position of a file object is restored.  Raises `OSError` for a
    file that cannot be opened, and `RequestError` for what is neither or cannot seek.
    """
    if isinstance(source, (str, os.PathLike)):
        file = open_local(source)
        try:
            return file.read_at(8, 0) == IDENTIFIER_SIGNATURE
        finally:
            file.close()
    refuse_no_file(source, "read", "seek", "tell")
    if not can_seek(source):
        raise RequestError("the file object cannot seek, and its position could not be restored")
    given: Any = source
    if is_storage(given):
        return bool(given.read_at(8, 0) == IDENTIFIER_SIGNATURE)
    position = given.tell()
    try:
        given.seek(0)
        return bool(given.read(8) == IDENTIFIER_SIGNATURE)
    finally:
        given.seek(position)


def _open_file(
    source: Source,
    options: OpenOptions,
    reopen: tuple[Any, ...] | None = None,
    *,
    trusted: bool = True,
    hints: Hints | None = None,
) -> VHDXImage:
    """Open one file; a path that is not *trusted* must be a regular file and no link."""
    storage = open_storage(source, options, trusted=trusted)
    if options.salvage and hints is None:
        hints = Hints()
    return VHDXImage._open(storage, replay_log=options.log == "auto", reopen=reopen, salvage=hints)


def open_storage(source: Source, options: OpenOptions, *, trusted: bool = True) -> Storage:
    """Open the bytes of one file, with the lock that *options* ask for."""
    use = None if not options.lock else WRITER if options.write else READER
    if isinstance(source, (str, os.PathLike)):
        return open_local(source, devices=trusted, follow=trusted, write=options.write, use=use)
    storage = open_file_object(source, write=options.write)
    if use is not None and isinstance(storage, LocalFile):
        try:
            storage.lock(use)
        except BaseException:
            storage.close()
            raise
    return storage


def _attach_parents(image: VHDXImage, choice: ParentChoice, options: OpenOptions) -> None:
    """Open parent after parent until one has none."""
    for _ in attach_parents(image, choice, options):
        pass


def attach_parents(image: VHDXImage, choice: ParentChoice, options: OpenOptions) -> Iterator[VHDXImage]:
    """
    Open parent after parent until one has none, and yield each one; in a loop, because a chain may be deep.

    An open image that was given brings its own parents along.
    """
    if not (choice == "auto" or callable(choice) or isinstance(choice, (str, os.PathLike, VHDXImage))):
        raise RequestError(
            f"parent is {choice!r}, and must be a path, an open image, a function, False or 'auto'"
        )
    given = not callable(choice) and choice != "auto"
    if given and image.kind != "differencing":
        raise RequestError(f"{image.name} is no differencing image, and has no parent to name")
    chain = [image]
    while chain[-1].kind == "differencing":
        if len(chain) > MAX_CHAIN_DEPTH:
            raise ParentCycleError(f"{image.name}: the chain is deeper than {MAX_CHAIN_DEPTH} parents")
        child = chain[-1]
        if given and child is not image:
            choice = "auto"
        try:
            parent, owned = _find(child, choice, chain, options)
        except LogPendingError:
            raise
        except (ParentError, ImageError) as error:
            if not options.salvage or choice != "auto":
                raise
            child._do_without_parent(str(error))
            return
        child._attach(parent, owned=owned)
        yield parent
        if not owned:
            return
        chain.append(parent)


def _find(
    child: VHDXImage, choice: ParentChoice, chain: list[VHDXImage], options: OpenOptions
) -> tuple[VHDXImage, bool]:
    """
    Return the first candidate that opens and fits, and whether it is ours to close.

    Raises what the candidates add up to where none does.
    """
    tried: list[tuple[str, str]] = []
    problems: list[ParentCycleError | ParentMismatchError] = []
    cause: BaseException | None = None
    for label, source in _candidates(child, choice, options):
        if isinstance(source, VHDXImage):
            source.tell()  # a closed one raises
            refuse_writable_parent(source)
        try:
            parent = _open_candidate(source, options)
        except (LockedError, LogPendingError):
            raise
        except (OSError, ImageError, ValueError, RecursionError) as error:  # realpath follows links in depth
            tried.append((label, getattr(error, "strerror", None) or str(error)))
            cause = error
            continue
        with contextlib.ExitStack() as unless_taken:
            if parent is not source:
                unless_taken.enter_context(parent)
            problem = _problem(child, parent, chain, options)
            if problem is None:
                unless_taken.pop_all()
                return parent, parent is not source
        tried.append((label, problem.message))
        problems.append(problem)
    for kind in (ParentCycleError, ParentMismatchError):
        for problem in problems:
            if isinstance(problem, kind):
                problem.tried = tuple(tried)
                raise problem
    advice = "; name it (parent=, --parent) or its folder (search=, --search)"
    if choice != "auto" or options.within is not None:  # who chose already knows how
        advice = ""
    raise ParentNotFoundError(f"{child.name}: its parent was not found{advice}", tuple(tried)) from cause


def refuse_writable_parent(image: VHDXImage) -> None:
    """What is written into a parent cuts it off from its children."""
    if image.writable():
        raise RequestError(
            f"{image.name} is open for writing, and no child may look at it meanwhile; close it, and give its path"
        )


class _Refused(ValueError):
    """A candidate that is not even looked at."""


def _candidates(child: VHDXImage, choice: ParentChoice, options: OpenOptions) -> Iterator[tuple[str, Any]]:
    """Yield (what the candidate is called, what to open); a `Candidate` is subject to the policy."""
    if callable(choice):
        source = choice(locator_of(child))
        is_path = isinstance(source, (str, os.PathLike))
        yield os.fspath(source) if is_path else "the parent callable", source
    elif isinstance(choice, VHDXImage):
        yield choice.name, choice
    elif choice != "auto":
        yield str(choice), Candidate(str(choice), os.fspath(choice), absolute=False)  # type: ignore[arg-type]  # a path: open() was given one
    else:
        for candidate in candidates(locator_of(child), _folders(child), options.search, _FLAVOUR):
            yield candidate.path or candidate.text, candidate


def _open_candidate(source: Any, options: OpenOptions) -> VHDXImage:
    if source is None:
        raise _Refused("it has none to give")
    if isinstance(source, VHDXImage):
        return source
    if isinstance(source, (str, os.PathLike)):
        source = Candidate(str(source), os.fspath(source), absolute=False)
    if not isinstance(source, Candidate):
        return _open_file(source, options)
    if source.path is None:
        raise _Refused(source.why)
    real = _refuse(source, options)
    return _open_file(real, options, (_unpickle, (real, "auto", options)), trusted=False)


def _refuse(candidate: Candidate, options: OpenOptions) -> str:
    """
    Return where a candidate really lies, and raise `_Refused` where the policy forbids it.

    What the caller does not allow is not even looked at: to resolve a path of Windows that names a
    network share would log in there.
    """
    assert candidate.path is not None
    place = place_of(candidate.path, _FLAVOUR) if candidate.absolute else None
    if place is not None and not _is_allowed(place, options):
        raise _Refused("an absolute path, and allow_absolute does not name its folder")
    real = os.path.realpath(candidate.path)
    if candidate.absolute and not _is_allowed(real, options):
        raise _Refused("an absolute path that leads out of the folders of allow_absolute")
    if options.within is not None and not _lies_in(real, options.within):
        raise _Refused(f"it lies outside {options.within}")
    return real


def _is_allowed(path: str, options: OpenOptions) -> bool:
    return any(_lies_in(path, folder) for folder in options.allow_absolute)


def _lies_in(path: str, folder: str) -> bool:
    try:
        return os.path.normcase(os.path.commonpath([path, folder])) == os.path.normcase(folder)
    except ValueError:  # on another drive
        return False


def is_at_its_path(image: VHDXImage) -> bool:
    """Return whether the image's name is the path, from here, of the file that is open."""
    file = file_behind(image._file.raw)
    if file is None:
        return False
    try:
        return os.path.samestat(os.stat(image.name), file.status())
    except (OSError, ValueError):
        return False


def _folders(child: VHDXImage) -> list[str]:
    """Return the folders that the child's relative path may start from; none for a nameless file object."""
    if not is_at_its_path(child):
        return []
    folders = [os.path.dirname(os.path.abspath(child.name)), os.path.dirname(os.path.realpath(child.name))]
    return list(dict.fromkeys(folders))


def leads_to(child: VHDXImage, image: VHDXImage, options: OpenOptions) -> list[tuple[str, bool]]:
    """
    Return the paths of the child's locator that mean something here, and whether each leads to *image*.

    Paths that the policy forbids are not looked at; none is where there is no file to compare with.
    """
    if not isinstance(image._file.raw, LocalFile):
        return []
    status = image._file.raw.status()
    found: dict[str, bool] = {}
    for candidate in candidates(locator_of(child), _folders(child), (), _FLAVOUR):
        if candidate.path is None:
            continue
        try:
            _refuse(candidate, options)
            same = os.path.samestat(os.stat(candidate.path), status)
        except _Refused:
            continue
        except (OSError, ValueError):
            same = False
        found[candidate.text] = found.get(candidate.text, False) or same
    return list(found.items())


def locator_of(child: VHDXImage) -> ParentLocator:
    """Return the parent locator of a differencing image."""
    system = child._file.metadata.system
    if PARENT_LOCATOR not in system:  # only with salvage=True
        error = corrupt("LOCATOR-MISSING", "metadata table", 0, "2.6.2.6", "there is no parent locator left")
        error.name = child.name
        raise error
    try:
        return read_locator(system[PARENT_LOCATOR], system.place(PARENT_LOCATOR))
    except ImageError as error:
        error.name = child.name
        raise


def _problem(
    child: VHDXImage, parent: VHDXImage, chain: list[VHDXImage], options: OpenOptions
) -> ParentCycleError | ParentMismatchError | None:
    """Return why *parent* cannot be the parent of *child*, the last of *chain*."""
    if any(_is_same(parent, member) for member in chain):
        return ParentCycleError(f"{child.name}: {parent.name} is its own descendant")
    if child.logical_sector_size != parent.logical_sector_size:
        return ParentMismatchError(
            f"{parent.name} has sectors of {parent.logical_sector_size} bytes, and its child {child.name} of "
            f"{child.logical_sector_size}",
            child.logical_sector_size,
            parent.logical_sector_size,
        )
    if options.verify_parent:
        expected: tuple[UUID, ...] = locator_of(child).linkages
        if parent.data_write_guid == ZERO_GUID and options.salvage:
            return ParentMismatchError(
                f"{parent.name} has lost its headers, and with them the DataWriteGuid that tells whether it is "
                f"the parent of {child.name}; verify_parent=False (--no-verify-parent) takes it all the same",
                expected[0],
                parent.data_write_guid,
            )
        if parent.data_write_guid not in expected:
            return ParentMismatchError(
                f"{parent.name} is not the parent that {child.name} was made from, or was changed since: "
                f"its DataWriteGuid is {parent.data_write_guid}, and the child names "
                f"{' or '.join(map(str, expected))}; verify_parent=False (--no-verify-parent) opens it all the same",
                expected[0],
                parent.data_write_guid,
            )
    return None


def _is_same(one: VHDXImage, other: VHDXImage) -> bool:
    files = file_behind(one._file.raw), file_behind(other._file.raw)
    if files[0] is not None and files[1] is not None:
        if os.path.samestat(files[0].status(), files[1].status()):
            return True
    elif one._file.raw is other._file.raw:
        return True
    return one.file_write_guid == other.file_write_guid != ZERO_GUID
