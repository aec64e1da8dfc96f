"""What the learner asks of the C library's allocator."""

import ctypes

# malloc.h of glibc; a value is an int.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 32 << 20


def keep_freed() -> None:
    """Let glibc keep freed tensors of up to 32 MiB for the next ones, in this process and from now on.

    Every step takes the same megabytes again; fetched from the kernel, page by page, they cost a small model a
    fifteenth of its time. With another C library nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
