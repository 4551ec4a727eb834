package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	storage "github.com/storaged/storaged"
)

// The kernel's FUSE protocol, as far as a file system with one file needs it. The structures and flags are go-fuse's; its
// server is not used, because it cannot go on with a connection that another process has begun.

// opcode says what a request asks for.
type opcode uint32

const (
	opLookup      opcode = 1
	opForget      opcode = 2
	opGetattr     opcode = 3
	opOpen        opcode = 14
	opRead        opcode = 15
	opWrite       opcode = 16
	opStatfs      opcode = 17
	opRelease     opcode = 18
	opFsync       opcode = 20
	opFlush       opcode = 25
	opInit        opcode = 26
	opOpendir     opcode = 27
	opReaddir     opcode = 28
	opReleasedir  opcode = 29
	opInterrupt   opcode = 36
	opDestroy     opcode = 38
	opBatchForget opcode = 42
	opFallocate   opcode = 43
)

// Sizes of the protocol's structures, in bytes.
const (
	inHeaderBytes  = 40
	outHeaderBytes = 16
	readInBytes    = 40 // without the header
	writeInBytes   = 40
	fallocInBytes  = 32
	initInBytes    = 16 // that every version sends
)

// Limits that are told to the kernel.
const (
	maxIOBytes    = 512 << 10 // of one READ or WRITE
	maxBackground = 64        // requests that the kernel has us work on at a time
	requestBytes  = inHeaderBytes + writeInBytes + maxIOBytes
)

// Inodes.
const (
	rootNode = 1
	diskNode = 2
)

// diskName is the name of the one file.
const diskName = "disk"

// notifyResend asks the kernel to send every request again that it has handed out and that is not answered (Linux 6.9).
const notifyResend = 7

// inHeader is the head of a request.
type inHeader struct {
	length uint32
	op     opcode
	unique uint64
	node   uint64
}

var errShortRequest = errors.New("the kernel's request is too short")

func parseInHeader(b []byte) (h inHeader, err error) {
	if len(b) < inHeaderBytes {
		return h, errShortRequest
	}
	e := binary.NativeEndian
	h = inHeader{length: e.Uint32(b), op: opcode(e.Uint32(b[4:])), unique: e.Uint64(b[8:]), node: e.Uint64(b[16:])}
	if int(h.length) != len(b) {
		return h, fmt.Errorf("a request of %d bytes in %d", h.length, len(b))
	}
	return h, nil
}

// ioRange is what READ, WRITE and FALLOCATE are about.
type ioRange struct {
	offset, length uint64
	mode           uint32 // of FALLOCATE
}

// end reports the end of the range, and whether it can be one of a volume.
func (r ioRange) end() (int64, bool) {
	end := r.offset + r.length
	return int64(end), end >= r.offset && end <= storage.MaxVolumeBytes
}

// parseIO reads the body of READ and WRITE; data is what follows it.
func parseIO(body []byte) (r ioRange, data []byte, err error) {
	if len(body) < readInBytes {
		return r, nil, errShortRequest
	}
	r = ioRange{offset: binary.NativeEndian.Uint64(body[8:]), length: uint64(binary.NativeEndian.Uint32(body[16:]))}
	return r, body[readInBytes:], nil
}

func parseFallocate(body []byte) (r ioRange, err error) {
	if len(body) < fallocInBytes {
		return r, errShortRequest
	}
	e := binary.NativeEndian
	return ioRange{offset: e.Uint64(body[8:]), length: e.Uint64(body[16:]), mode: e.Uint32(body[24:])}, nil
}

// appendOutHeader begins an answer; its length is set by finishOut.
func appendOutHeader(b []byte, unique uint64, errno syscall.Errno) []byte {
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(-int32(errno)))
	return binary.NativeEndian.AppendUint64(b, unique)
}

func finishOut(b []byte) []byte {
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// appendStruct appends one of go-fuse's structures, which hold integers of fixed sizes only.
func appendStruct(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.NativeEndian, v)
	if err != nil {
		panic(err) // only a structure that has no fixed size fails
	}
	return b
}

// resendMessage is the notification that has the kernel send again what is not answered.
func resendMessage() []byte {
	b := binary.NativeEndian.AppendUint32(nil, outHeaderBytes)
	b = binary.NativeEndian.AppendUint32(b, notifyResend)
	return binary.NativeEndian.AppendUint64(b, 0)
}

// initAnswer answers INIT. resends reports whether the kernel knows notifyResend.
func initAnswer(body []byte) (out *fuse.InitOut, resends bool, err error) {
	if len(body) < initInBytes {
		return nil, false, errShortRequest
	}
	e := binary.NativeEndian
	major, minor, readahead, flags := e.Uint32(body), e.Uint32(body[4:]), e.Uint32(body[8:]), uint64(e.Uint32(body[12:]))
	if flags&fuse.CAP_INIT_EXT != 0 && len(body) >= initInBytes+4 {
		flags |= uint64(e.Uint32(body[16:])) << 32
	}
	if major != 7 || minor < 31 {
		return nil, false, fmt.Errorf("the kernel speaks FUSE %d.%d; 7.31 (Linux 5.4) is the least", major, minor)
	}
	flags &= fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_ASYNC_DIO | fuse.CAP_MAX_PAGES | fuse.CAP_PARALLEL_DIROPS |
		fuse.CAP_INIT_EXT | fuse.CAP_HAS_RESEND
	return &fuse.InitOut{Major: 7, Minor: min(minor, 40), MaxReadAhead: readahead, Flags: uint32(flags), Flags2: uint32(flags >> 32),
		MaxBackground: maxBackground, CongestionThreshold: maxBackground * 3 / 4, MaxWrite: maxIOBytes, TimeGran: 1,
		MaxPages: maxIOBytes / 4096}, flags&fuse.CAP_HAS_RESEND != 0, nil
}

// attrOf describes an inode. Attributes are valid for no time: the file grows with its volume.
func attrOf(node uint64, sizeBytes int64, readOnly bool) fuse.Attr {
	a := fuse.Attr{Ino: node, Nlink: 1, Blksize: storage.BlockSize}
	switch {
	case node == rootNode:
		a.Mode, a.Nlink = syscall.S_IFDIR|0o700, 2
	case readOnly:
		a.Mode = syscall.S_IFREG | 0o400
	default:
		a.Mode = syscall.S_IFREG | 0o600
	}
	if node == diskNode {
		a.Size, a.Blocks = uint64(sizeBytes), uint64(sizeBytes)/512
	}
	return a
}

// errnoOf is what the kernel is told of an error. The block layer above knows few of them: no space, and that something
// went wrong.
func errnoOf(err error) syscall.Errno {
	switch storage.KindOf(err) {
	case storage.KindNone:
		return 0
	case storage.KindNoSpace:
		return syscall.ENOSPC
	case storage.KindPermission:
		return syscall.EPERM
	case storage.KindInvalid:
		return syscall.EINVAL
	case storage.KindUnsupported:
		return syscall.EOPNOTSUPP
	default:
		return syscall.EIO
	}
}
