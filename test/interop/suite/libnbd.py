# What libnbd sees of an export: structured replies, DF, block status across extents, and errors for bad requests after
# which the connection still works. Arguments: NBD URI, export name.
import errno
import sys

import nbd

uri, export = sys.argv[1:]
MiB = 1 << 20


def connect(strict=True, contexts=("base:allocation",), structured=True):
    h = nbd.NBD()
    if not strict:
        h.set_strict_mode(0)
    h.set_request_structured_replies(structured)
    if structured:
        for c in contexts:
            h.add_meta_context(c)
    h.connect_uri(uri)
    return h


def fails(want, call, *args, **kw):
    try:
        call(*args, **kw)
    except nbd.Error as e:
        assert e.errnum == want, "%s%r: %s, want %s" % (
            call.__name__, args, e, errno.errorcode[want])
        return
    raise AssertionError("%s%r succeeded" % (call.__name__, args))


h = connect()
size = h.get_size()
assert h.get_structured_replies_negotiated()
assert h.can_df() and h.can_fua() and h.can_flush() and h.can_trim() and h.can_zero()
assert h.can_fast_zero() and h.can_cache() and h.can_multi_conn() and not h.is_read_only()
assert h.can_meta_context("base:allocation")
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1
assert h.get_block_size(nbd.SIZE_PREFERRED) == 4096
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MiB
assert h.get_protocol() == "newstyle-fixed"

# Data on both sides of an extent's border, holes around.
h.zero(64 * MiB, 0)
data = bytes(range(1, 256)) * 200
at = 4 * MiB - 20000
h.pwrite(data, at)
assert h.pread(len(data), at) == data
assert h.pread(1, at) == data[:1]


# Structured reads: the chunks cover the request once, whatever their number; DF means one.
def structured_read(n, offset, flags=0):
    buf, covered = bytearray(b"\xee" * n), []

    def chunk(sub, start, kind, err):
        assert err.value == 0
        assert kind in (nbd.READ_DATA, nbd.READ_HOLE)
        covered.append((start, start + len(sub)))
        buf[start - offset:start - offset + len(sub)] = sub

    h.pread_structured(n, offset, chunk, flags)
    covered.sort()
    assert covered[0][0] == offset and covered[-1][1] == offset + n
    assert all(a[1] == b[0] for a, b in zip(covered, covered[1:]))
    return bytes(buf), len(covered)


want = bytes(at - 2 * MiB) + data + bytes(8 * MiB - at - len(data))
for n, offset in ((6 * MiB, 2 * MiB), (6 * MiB - 3, 2 * MiB + 1), (100, at), (4096, 5 * MiB)):
    got, _ = structured_read(n, offset)
    assert got == want[offset - 2 * MiB:offset - 2 * MiB + n]
    got, chunks = structured_read(n, offset, nbd.CMD_FLAG_DF)
    assert got == want[offset - 2 * MiB:offset - 2 * MiB + n] and chunks == 1
structured_read(32 * MiB, 0)


# Block status.
def status(n, offset, flags=0):
    found = {}

    def extent(context, start, entries, err):
        assert start == offset and err.value == 0
        pairs = list(zip(entries[::2], entries[1::2]))
        assert all(length > 0 for length, _ in pairs)
        found[context] = pairs

    h.block_status(n, offset, extent, flags)
    return found["base:allocation"]


def whole(n, offset):
    runs, end = [], offset + n
    while offset < end:
        for length, flags in status(end - offset, offset):
            if runs and runs[-1][1] == flags:
                runs[-1] = (runs[-1][0] + length, flags)
            else:
                runs.append((length, flags))
            offset += length
    return runs


HOLE_ZERO = nbd.STATE_HOLE | nbd.STATE_ZERO
first, last = at // 4096 * 4096, -(-(at + len(data)) // 4096) * 4096
runs = whole(16 * MiB, 0)
assert runs[:2] == [(first, HOLE_ZERO), (last - first, 0)] and runs[2][1] == HOLE_ZERO, runs
assert status(4096, first, nbd.CMD_FLAG_REQ_ONE) == [(4096, 0)]
assert status(1, first + 1, nbd.CMD_FLAG_REQ_ONE) == [(1, 0)]
assert len(status(16 * MiB, 0, nbd.CMD_FLAG_REQ_ONE)) == 1
h.trim(last - first, first)
assert whole(16 * MiB, 0)[0][1] == HOLE_ZERO
h.zero(MiB, MiB, nbd.CMD_FLAG_NO_HOLE)
assert not any(flags & nbd.STATE_HOLE for _, flags in whole(MiB, MiB))
assert h.pread(MiB, MiB) == bytes(MiB)

# Everything else that a client may do.
h.cache(MiB, 0)
h.flush()
h.pwrite(b"x" * 5000, 123, nbd.CMD_FLAG_FUA)
h.trim(4096, 0, nbd.CMD_FLAG_FUA)
h.zero(MiB, 2 * MiB, nbd.CMD_FLAG_FAST_ZERO)
h.zero(MiB, 2 * MiB, nbd.CMD_FLAG_FUA)

# Many requests in flight.
cookies, buffers = [], []
for i in range(100):
    h.pwrite(bytes([i + 1]) * 4096, i * 4096)
for i in range(100):
    b = nbd.Buffer(4096)
    buffers.append(b)
    cookies.append(h.aio_pread(b, i * 4096))
while h.aio_in_flight() > 0:
    h.poll(-1)
for i, c in enumerate(cookies):
    assert h.aio_command_completed(c)
    assert buffers[i].to_bytearray() == bytes([i + 1]) * 4096
h.shutdown()

# Bad requests: an error, and the connection goes on.
h = connect(strict=False)
for offset, n in ((size, 1), (size - 1, 2), (size - 512, 4096), (1 << 62, 512), ((1 << 63) - 512, 512),
                  ((1 << 64) - 512, 1024)):
    fails(errno.EINVAL, h.pread, n, offset)
    fails(errno.ENOSPC, h.pwrite, b"x" * n, offset)
    fails(errno.ENOSPC, h.zero, n, offset)
    fails(errno.EINVAL, h.trim, n, offset)
    fails(errno.EINVAL, h.cache, n, offset)
    fails(errno.EINVAL, h.block_status, n, offset, lambda *a: 0)
fails(errno.EINVAL, h.pread, 512, 0, 1 << 14)
fails(errno.EINVAL, h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_DF)
fails(errno.EINVAL, h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EINVAL, h.flush, nbd.CMD_FLAG_REQ_ONE)
fails(errno.EINVAL, h.block_status, 0, 0, lambda *a: 0)
fails(errno.ENOTSUP, h.zero, 100, 1, nbd.CMD_FLAG_FAST_ZERO)
fails(errno.EOVERFLOW, h.pread, 32 * MiB + 1, 0)
fails(errno.EINVAL, h.pwrite, bytes(32 * MiB + 1), 0)
h.pread(0, 0)
h.pwrite(b"", 0)
h.trim(0, 0)
h.zero(0, 0)
assert len(h.pread(32 * MiB, 0)) == 32 * MiB
h.pwrite(b"still here", 99)
assert h.pread(10, 99) == b"still here"
h.shutdown()

# Without structured replies.
h = connect(structured=False, strict=False)
assert not h.get_structured_replies_negotiated() and not h.can_df()
assert h.pread(10, 99) == b"still here"
fails(errno.EINVAL, h.pread, 512, size)
fails(errno.EINVAL, h.pread, 32 * MiB + 1, 0)
fails(errno.ENOSPC, h.pwrite, b"x" * 512, size)
assert h.pread(10, 99) == b"still here"
h.shutdown()

# Two connections: what one has flushed, the other reads.
a, b = connect(), connect()
for i in range(50):
    a.pwrite(bytes([i]) * 3000, 5000)
    a.flush()
    assert b.pread(3000, 5000) == bytes([i]) * 3000
a.shutdown()
b.shutdown()

# Options one by one.
h = nbd.NBD()
h.set_opt_mode(True)
h.add_meta_context("base:")
h.connect_uri(uri)
names = []
h.opt_list(lambda name, description: names.append(name))
assert export in names, names
contexts = []
h.opt_list_meta_context(lambda name: contexts.append(name))
assert contexts == ["base:allocation"], contexts
h.set_export_name("no-such-export-of-that-name")
fails(errno.ENOENT, h.opt_info)
fails(errno.ENOENT, h.opt_go)
h.set_export_name(export)
h.set_full_info(True)
h.opt_info()
assert h.get_size() == size and h.get_canonical_export_name() == export
h.opt_go()
assert h.pread(10, 99) == b"still here"
h.shutdown()

h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
h.opt_abort()
print("libnbd", nbd.NBD().get_version(), "passed")
