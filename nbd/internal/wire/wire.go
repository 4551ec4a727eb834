// Package wire is what both ends of NBD share: the protocol's numbers, headers of requests and replies, and how they
// are read from and written to a socket.
//
// It decides nothing: what a header may say is checked by who reads it. Values may be used concurrently, but for Inbound
// and Outbound, which say who uses them.
package wire

import (
	"encoding/binary"
	"math"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What go-nbd's protocol package does not define. The names follow the protocol's own, without NBD_.

// Handshake and client flags.
const (
	HandshakeFlagNoZeroes uint16 = 1 << 1

	ClientFlagFixedNewstyle uint32 = 1 << 0
	ClientFlagNoZeroes      uint32 = 1 << 1
)

// Options.
const (
	OptExportName      uint32 = 1
	OptStartTLS        uint32 = 5
	OptStructuredReply uint32 = 8
	OptListMetaContext uint32 = 9
	OptSetMetaContext  uint32 = 10
	OptExtendedHeaders uint32 = 11
)

// Option replies.
const (
	RepMetaContext uint32 = 4

	RepErrBit         uint32 = 1 << 31
	RepErrUnsup              = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	RepErrPolicy             = RepErrBit | 2
	RepErrInvalid            = RepErrBit | 3
	RepErrTLSReqd            = RepErrBit | 5
	RepErrUnknown            = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	RepErrShutdown           = RepErrBit | 7
	RepErrTooBig             = RepErrBit | 9
	RepErrExtHdrReqd         = RepErrBit | 10
	ExportNamePadding        = 124 // zero bytes behind the answer to EXPORT_NAME unless the client waived them
	MaxStringBytes           = 4096
	OptionHeaderBytes        = 16
	OptionReplyBytes         = 20
	MaxOptionBytes           = 64 << 10 // of an option that is looked at: a name, and queries for contexts
	MaxMessageBytes          = 512      // of an error text; the protocol allows MaxStringBytes
)

// Transmission flags.
const (
	FlagReadOnly           uint16 = 1 << 1
	FlagSendFlush          uint16 = 1 << 2
	FlagSendFUA            uint16 = 1 << 3
	FlagSendTrim           uint16 = 1 << 5
	FlagSendWriteZeroes    uint16 = 1 << 6
	FlagSendDF             uint16 = 1 << 7
	FlagSendResize         uint16 = 1 << 9
	FlagSendCache          uint16 = 1 << 10
	FlagSendFastZero       uint16 = 1 << 11
	FlagBlockStatusPayload uint16 = 1 << 12
)

// Commands.
const (
	CmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	CmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	CmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	CmdFlush       = uint16(3)
	CmdTrim        = uint16(4)
	CmdCache       = uint16(5)
	CmdWriteZeroes = uint16(6)
	CmdBlockStatus = uint16(7)
	CmdResize      = uint16(8)
	CmdEnd         = uint16(9)
)

// Command flags.
const (
	CmdFlagFUA        uint16 = 1 << 0
	CmdFlagNoHole     uint16 = 1 << 1
	CmdFlagDF         uint16 = 1 << 2
	CmdFlagReqOne     uint16 = 1 << 3
	CmdFlagFastZero   uint16 = 1 << 4
	CmdFlagPayloadLen uint16 = 1 << 5
)

// Magic numbers and sizes of the transmission phase.
const (
	MagicStructuredReply uint32 = 0x668e33ef
	magicExtendedRequest uint32 = 0x21e41c71
	MagicExtendedReply   uint32 = 0x6e8a278c

	requestBytes         = 28
	ExtendedRequestBytes = 32
	SimpleReplyBytes     = 16
	StructuredReplyBytes = 20
	ExtendedReplyBytes   = 32

	// MaxCompactExtentBytes is the longest extent that a compact descriptor carries, a multiple of every block size.
	MaxCompactExtentBytes = math.MaxUint32 &^ (64<<10 - 1)
)

// Chunk types and flags.
const (
	ChunkFlagDone uint16 = 1 << 0

	ChunkNone           uint16 = 0
	ChunkOffsetData     uint16 = 1
	ChunkOffsetHole     uint16 = 2
	ChunkBlockStatus    uint16 = 5
	ChunkBlockStatusExt uint16 = 6
	ChunkErrorBit       uint16 = 1 << 15
	ChunkError                 = ChunkErrorBit | 1
)

// Error values.
const (
	ErrnoPerm     = protocol.TRANSMISSION_ERROR_EPERM
	ErrnoIO       = uint32(5)
	ErrnoNoMem    = uint32(12)
	ErrnoInvalid  = protocol.TRANSMISSION_ERROR_EINVAL
	ErrnoNoSpace  = uint32(28)
	ErrnoOverflow = uint32(75)
	ErrnoNotSup   = uint32(95)
	ErrnoShutdown = uint32(108)
)

// Features is what a client has negotiated.
type Features struct {
	Structured bool // structured replies
	Extended   bool // extended headers; implies chunks whatever structured says
	Contexts   []MetaContext
}

// Chunked reports whether replies to READ are chunks.
func (f Features) Chunked() bool { return f.Structured || f.Extended }

// RequestBytes is the length of a request's header.
func (f Features) RequestBytes() int {
	if f.Extended {
		return ExtendedRequestBytes
	}
	return requestBytes
}

// RequestMagic is what a request begins with.
func (f Features) RequestMagic() uint32 {
	if f.Extended {
		return magicExtendedRequest
	}
	return protocol.TRANSMISSION_MAGIC_REQUEST
}

// MetaContext is a selected metadata context; its id is its position in features.contexts plus one.
type MetaContext struct {
	Id   uint32
	Name string
}

// RequestHeader is a request of either layout. go-nbd's TransmissionRequestHeader has no room for 64-bit lengths.
type RequestHeader struct {
	Magic  uint32
	Flags  uint16
	Cmd    uint16
	Cookie uint64
	Offset uint64
	Length uint64
}

// DecodeRequest reads a header of the layout that was negotiated. b has Features.RequestBytes.
func DecodeRequest(b []byte, extended bool) RequestHeader {
	h := RequestHeader{
		Magic:  binary.BigEndian.Uint32(b),
		Flags:  binary.BigEndian.Uint16(b[4:]),
		Cmd:    binary.BigEndian.Uint16(b[6:]),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Offset: binary.BigEndian.Uint64(b[16:]),
	}
	if extended {
		h.Length = binary.BigEndian.Uint64(b[24:])
	} else {
		h.Length = uint64(binary.BigEndian.Uint32(b[24:]))
	}
	return h
}

// AppendRequest writes a request header of the layout that was negotiated.
func AppendRequest(b []byte, h RequestHeader, extended bool) []byte {
	b = binary.BigEndian.AppendUint32(b, h.Magic)
	b = binary.BigEndian.AppendUint16(b, h.Flags)
	b = binary.BigEndian.AppendUint16(b, h.Cmd)
	b = binary.BigEndian.AppendUint64(b, h.Cookie)
	b = binary.BigEndian.AppendUint64(b, h.Offset)
	if extended {
		return binary.BigEndian.AppendUint64(b, h.Length)
	}
	return binary.BigEndian.AppendUint32(b, uint32(h.Length))
}

// AppendSimpleReply writes a reply without chunks.
func AppendSimpleReply(b []byte, cookie uint64, errno uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, protocol.TRANSMISSION_MAGIC_REPLY)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, cookie)
}

// AppendChunk writes the header of a chunk with length bytes of payload to follow.
func AppendChunk(b []byte, h RequestHeader, extended bool, flags, kind uint16, length int) []byte {
	magic := MagicStructuredReply
	if extended {
		magic = MagicExtendedReply
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, h.Cookie)
	if extended {
		b = binary.BigEndian.AppendUint64(b, h.Offset)
		return binary.BigEndian.AppendUint64(b, uint64(length))
	}
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// AppendString writes a string as options carry it: its length before it.
func AppendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// AppendStruct writes one of go-nbd's fixed-size structures.
func AppendStruct(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.BigEndian, v)
	if err != nil {
		panic("nbd: structure without a fixed size: " + err.Error())
	}
	return b
}

// DecodeStruct reads one of go-nbd's fixed-size structures; b is at least that long.
func DecodeStruct(b []byte, v any) {
	if _, err := binary.Decode(b, binary.BigEndian, v); err != nil {
		panic("nbd: structure longer than its bytes: " + err.Error())
	}
}
