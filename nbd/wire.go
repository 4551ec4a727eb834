package nbd

import (
	"encoding/binary"

	"github.com/pojntfx/go-nbd/pkg/protocol"
)

// What go-nbd's protocol package does not define. The names follow the protocol's own, without NBD_.

// Handshake and client flags.
const (
	handshakeFlagNoZeroes uint16 = 1 << 1

	clientFlagFixedNewstyle uint32 = 1 << 0
	clientFlagNoZeroes      uint32 = 1 << 1
)

// Options.
const (
	optExportName      uint32 = 1
	optStartTLS        uint32 = 5
	optStructuredReply uint32 = 8
	optListMetaContext uint32 = 9
	optSetMetaContext  uint32 = 10
	optExtendedHeaders uint32 = 11
)

// Option replies.
const (
	repMetaContext uint32 = 4

	repErrBit         uint32 = 1 << 31
	repErrUnsup              = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED
	repErrPolicy             = repErrBit | 2
	repErrInvalid            = repErrBit | 3
	repErrTLSReqd            = repErrBit | 5
	repErrUnknown            = protocol.NEGOTIATION_TYPE_REPLY_ERR_UNKNOWN
	repErrShutdown           = repErrBit | 7
	repErrTooBig             = repErrBit | 9
	repErrExtHdrReqd         = repErrBit | 10
	exportNamePadding        = 124 // zero bytes behind the answer to EXPORT_NAME unless the client waived them
	maxStringBytes           = 4096
	optionHeaderBytes        = 16
	optionReplyBytes         = 20
	maxMessageBytes          = 512 // of an error text; the protocol allows maxStringBytes
)

// Transmission flags.
const (
	flagReadOnly           uint16 = 1 << 1
	flagSendFlush          uint16 = 1 << 2
	flagSendFUA            uint16 = 1 << 3
	flagSendTrim           uint16 = 1 << 5
	flagSendWriteZeroes    uint16 = 1 << 6
	flagSendDF             uint16 = 1 << 7
	flagSendResize         uint16 = 1 << 9
	flagSendCache          uint16 = 1 << 10
	flagSendFastZero       uint16 = 1 << 11
	flagBlockStatusPayload uint16 = 1 << 12
)

// Commands.
const (
	cmdRead        = protocol.TRANSMISSION_TYPE_REQUEST_READ
	cmdWrite       = protocol.TRANSMISSION_TYPE_REQUEST_WRITE
	cmdDisc        = protocol.TRANSMISSION_TYPE_REQUEST_DISC
	cmdFlush       = uint16(3)
	cmdTrim        = uint16(4)
	cmdCache       = uint16(5)
	cmdWriteZeroes = uint16(6)
	cmdBlockStatus = uint16(7)
	cmdResize      = uint16(8)
	cmdEnd         = uint16(9)
)

// Command flags.
const (
	cmdFlagFUA        uint16 = 1 << 0
	cmdFlagNoHole     uint16 = 1 << 1
	cmdFlagDF         uint16 = 1 << 2
	cmdFlagReqOne     uint16 = 1 << 3
	cmdFlagFastZero   uint16 = 1 << 4
	cmdFlagPayloadLen uint16 = 1 << 5
)

// Magic numbers and sizes of the transmission phase.
const (
	magicStructuredReply uint32 = 0x668e33ef
	magicExtendedRequest uint32 = 0x21e41c71
	magicExtendedReply   uint32 = 0x6e8a278c

	requestBytes         = 28
	extendedRequestBytes = 32
	simpleReplyBytes     = 16
	structuredReplyBytes = 20
	extendedReplyBytes   = 32
)

// Chunk types and flags.
const (
	chunkFlagDone uint16 = 1 << 0

	chunkNone           uint16 = 0
	chunkOffsetData     uint16 = 1
	chunkOffsetHole     uint16 = 2
	chunkBlockStatus    uint16 = 5
	chunkBlockStatusExt uint16 = 6
	chunkErrorBit       uint16 = 1 << 15
	chunkError                 = chunkErrorBit | 1
	chunkErrorOffset           = chunkErrorBit | 2
)

// Error values.
const (
	errnoPerm     = protocol.TRANSMISSION_ERROR_EPERM
	errnoIO       = uint32(5)
	errnoNoMem    = uint32(12)
	errnoInvalid  = protocol.TRANSMISSION_ERROR_EINVAL
	errnoNoSpace  = uint32(28)
	errnoOverflow = uint32(75)
	errnoNotSup   = uint32(95)
	errnoShutdown = uint32(108)
)

// features is what a client has negotiated.
type features struct {
	structured bool // structured replies
	extended   bool // extended headers; implies chunks whatever structured says
	contexts   []metaContext
}

// chunked reports whether replies to READ are chunks.
func (f features) chunked() bool { return f.structured || f.extended }

// requestBytes is the length of a request's header.
func (f features) requestBytes() int {
	if f.extended {
		return extendedRequestBytes
	}
	return requestBytes
}

// requestMagic is what a request begins with.
func (f features) requestMagic() uint32 {
	if f.extended {
		return magicExtendedRequest
	}
	return protocol.TRANSMISSION_MAGIC_REQUEST
}

// metaContext is a selected metadata context; its id is its position in features.contexts plus one.
type metaContext struct {
	id   uint32
	name string
}

// requestHeader is a request of either layout. go-nbd's TransmissionRequestHeader has no room for 64-bit lengths.
type requestHeader struct {
	magic  uint32
	flags  uint16
	cmd    uint16
	cookie uint64
	offset uint64
	length uint64
}

// decodeRequest reads a compact header. b has requestBytes.
func decodeRequest(b []byte) requestHeader {
	_ = b[requestBytes-1]
	h := protocol.TransmissionRequestHeader{
		RequestMagic: binary.BigEndian.Uint32(b),
		CommandFlags: binary.BigEndian.Uint16(b[4:]),
		Type:         binary.BigEndian.Uint16(b[6:]),
		Handle:       binary.BigEndian.Uint64(b[8:]),
		Offset:       binary.BigEndian.Uint64(b[16:]),
		Length:       binary.BigEndian.Uint32(b[24:]),
	}
	return requestHeader{magic: h.RequestMagic, flags: h.CommandFlags, cmd: h.Type, cookie: h.Handle,
		offset: h.Offset, length: uint64(h.Length)}
}

// decodeExtendedRequest reads an extended header. b has extendedRequestBytes.
func decodeExtendedRequest(b []byte) requestHeader {
	_ = b[extendedRequestBytes-1]
	return requestHeader{
		magic:  binary.BigEndian.Uint32(b),
		flags:  binary.BigEndian.Uint16(b[4:]),
		cmd:    binary.BigEndian.Uint16(b[6:]),
		cookie: binary.BigEndian.Uint64(b[8:]),
		offset: binary.BigEndian.Uint64(b[16:]),
		length: binary.BigEndian.Uint64(b[24:]),
	}
}

// appendRequest writes a request header of the layout that was negotiated.
func appendRequest(b []byte, h requestHeader, extended bool) []byte {
	b = binary.BigEndian.AppendUint32(b, h.magic)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = binary.BigEndian.AppendUint16(b, h.cmd)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	b = binary.BigEndian.AppendUint64(b, h.offset)
	if extended {
		return binary.BigEndian.AppendUint64(b, h.length)
	}
	return binary.BigEndian.AppendUint32(b, uint32(h.length))
}

// appendSimpleReply writes a reply without chunks.
func appendSimpleReply(b []byte, cookie uint64, errno uint32) []byte {
	h := protocol.TransmissionReplyHeader{ReplyMagic: protocol.TRANSMISSION_MAGIC_REPLY, Error: errno, Handle: cookie}
	b = binary.BigEndian.AppendUint32(b, h.ReplyMagic)
	b = binary.BigEndian.AppendUint32(b, h.Error)
	return binary.BigEndian.AppendUint64(b, h.Handle)
}

// appendChunk writes the header of a chunk with length bytes of payload to follow.
func appendChunk(b []byte, h requestHeader, extended bool, flags, kind uint16, length int) []byte {
	magic := magicStructuredReply
	if extended {
		magic = magicExtendedReply
	}
	b = binary.BigEndian.AppendUint32(b, magic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, h.cookie)
	if extended {
		b = binary.BigEndian.AppendUint64(b, h.offset)
		return binary.BigEndian.AppendUint64(b, uint64(length))
	}
	return binary.BigEndian.AppendUint32(b, uint32(length))
}

// appendStruct writes one of go-nbd's fixed-size structures.
func appendStruct(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.BigEndian, v)
	if err != nil {
		panic("nbd: structure without a fixed size: " + err.Error())
	}
	return b
}

// decodeStruct reads one of go-nbd's fixed-size structures; b is at least that long.
func decodeStruct(b []byte, v any) {
	if _, err := binary.Decode(b, binary.BigEndian, v); err != nil {
		panic("nbd: structure longer than its bytes: " + err.Error())
	}
}
