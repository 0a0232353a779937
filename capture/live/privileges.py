"""Gives up every privilege once the sockets are bound. Standard library only, to be called before there are threads.

What still works without: receiving, promiscuous mode, binding the same socket again (docs/decisions/0013).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import sys
from typing import Final

from capture.errors import LiveError

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522


def drop_privileges(user: str | None = None) -> None:
    """Become another user, and drop all capabilities of this thread and those it will start.

    Children cannot get them back either, root's included (``no_new_privs``). Nothing on other systems than Linux.

    Args:
        user: to become; None: the one that called sudo, if any.

    Raises:
        LiveError: if the kernel does not let go of them.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if user is None:
        _become_caller()
    else:
        _become(user)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    if libc.capset(header, nothing) != 0:
        raise LiveError(
            f"cannot drop privileges: {os.strerror(ctypes.get_errno())}; start netcls as a plain user"
        )


def _become(name: str) -> None:
    try:
        entry = pwd.getpwnam(name)
        os.setgroups(os.getgrouplist(name, entry.pw_gid))
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    except KeyError:
        raise LiveError(f"no user '{name}' on this machine; `useradd --system {name}`") from None
    except OSError as error:
        raise LiveError(f"cannot become user '{name}': {error.strerror}; start netcls as root") from None


def _become_caller() -> None:
    """``sudo netcls sniff``: from here on as who typed it, for good."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (uid.isdecimal() and gid.isdecimal()) or uid == "0":
        return
    try:
        os.setgroups([int(gid)])
        os.setgid(int(gid))
        os.setuid(int(uid))
    except (OSError, OverflowError) as error:
        raise LiveError(f"cannot become user {uid} again: {error}; run netcls without sudo") from None
