package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	storage "github.com/storaged/storaged"
)

// Limits of one frame, checked before anything is allocated for it.
const (
	// MaxHeaderBytes bounds the header of a request or response; that of a read answer carries 4 bytes a block.
	MaxHeaderBytes = 64 << 10
	// MaxPayloadBytes bounds the payload of a request or response.
	MaxPayloadBytes = 8 << 20
)

// frameHeaderBytes is the length of the fixed header before every frame; layout in docs/format/peer.md.
const frameHeaderBytes = 40

const frameMagic = 0x31465053 // "SPF1"

type frameKind uint8

const (
	kindRequest  frameKind = 1
	kindResponse frameKind = 2
	kindError    frameKind = 3 // the header is an encoded error, there is no payload
	kindPing     frameKind = 4
	kindPong     frameKind = 5
)

// flagPayloadSum says that the fixed header has the payload's checksum. Without it the payload carries checksums of its
// own, which whoever handles the frame verifies.
const flagPayloadSum = 1

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// frameHeader is what the fixed header of a frame says.
type frameHeader struct {
	kind         frameKind
	method       Method
	group        storage.GroupID
	id           uint64 // chosen by the side that dialled; the answer repeats it
	headerBytes  int    // <= MaxHeaderBytes
	payloadBytes int    // <= MaxPayloadBytes
	headerCRC    uint32 // crc32c of the header's bytes
	ownSums      bool   // the payload carries checksums of its own
	payloadCRC   uint32 // crc32c of the payload's bytes; 0 with ownSums

	damage error // of a frame that was received: why its payload is not the one that was sent
}

// appendTo appends the fixed header's bytes.
func (h *frameHeader) appendTo(b []byte) []byte {
	at := len(b)
	b = binary.LittleEndian.AppendUint32(b, frameMagic)
	flags := byte(flagPayloadSum)
	if h.ownSums {
		flags = 0
	}
	b = append(b, byte(h.kind), flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.method))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.group))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.headerBytes))
	b = binary.LittleEndian.AppendUint64(b, h.id)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.payloadBytes))
	b = binary.LittleEndian.AppendUint32(b, h.headerCRC)
	b = binary.LittleEndian.AppendUint32(b, h.payloadCRC)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// errNotAFrame and its siblings end a connection: after one of them the stream cannot be trusted any more.
var (
	errNotAFrame = errors.New("the stream does not continue with a frame")
	errFrameCRC  = errors.New("a frame's checksum does not match")
	errHeaderCRC = errors.New("a header's checksum does not match")
)

// errPayloadCRC ends one request and not the connection: the lengths are good, so the stream goes on.
var errPayloadCRC = errors.New("the payload's checksum does not match: it was damaged on its way")

// errNoPayloadCRC is the same for a payload that should have one.
var errNoPayloadCRC = errors.New("a payload without a checksum, where it must have one")

// parseFrame checks and decodes the fixed header in b, which holds frameHeaderBytes bytes. Lengths in the result are
// within the limits.
func parseFrame(b []byte) (h frameHeader, err error) {
	if binary.LittleEndian.Uint32(b) != frameMagic {
		return h, errNotAFrame
	}
	if crc32.Checksum(b[:frameHeaderBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[frameHeaderBytes-4:]) {
		return h, errFrameCRC
	}
	headerBytes, payloadBytes := binary.LittleEndian.Uint32(b[12:]), binary.LittleEndian.Uint32(b[24:])
	h = frameHeader{
		kind:       frameKind(b[4]),
		method:     Method(binary.LittleEndian.Uint16(b[6:])),
		group:      storage.GroupID(binary.LittleEndian.Uint32(b[8:])),
		id:         binary.LittleEndian.Uint64(b[16:]),
		headerCRC:  binary.LittleEndian.Uint32(b[28:]),
		ownSums:    b[5]&flagPayloadSum == 0,
		payloadCRC: binary.LittleEndian.Uint32(b[32:]),
	}
	switch {
	case h.kind < kindRequest || h.kind > kindPong:
		return h, fmt.Errorf("frame of unknown kind %d", h.kind)
	case b[5]&^flagPayloadSum != 0:
		return h, fmt.Errorf("frame with unknown flags %#x", b[5])
	case headerBytes > MaxHeaderBytes:
		return h, fmt.Errorf("frame with a header of %d bytes, at most %d are allowed", headerBytes, MaxHeaderBytes)
	case payloadBytes > MaxPayloadBytes:
		return h, fmt.Errorf("frame with a payload of %d bytes, at most %d are allowed", payloadBytes, MaxPayloadBytes)
	case h.kind == kindError && payloadBytes != 0, h.kind >= kindPing && headerBytes|payloadBytes != 0:
		return h, fmt.Errorf("frame of kind %d with %d bytes of header and %d of payload", h.kind, headerBytes, payloadBytes)
	}
	h.headerBytes, h.payloadBytes = int(headerBytes), int(payloadBytes)
	return h, nil
}

// outFrame is a frame on its way out. conn.mu guards call and state; the rest belongs to whoever holds the frame.
type outFrame struct {
	head    []byte   // fixed header and header, one copy
	payload [][]byte // by reference
	size    int64    // bytes on the wire
	call    *call    // the request's call while it is outstanding; nil for replies and pings
	state   frameState
	written func() // called once when the payload is not referenced any more; may be nil
}

type frameState uint8

const (
	frameQueued  frameState = iota // in conn.queue
	frameWriting                   // some of its bytes may be on the wire
	frameDead                      // given up while queued: nothing of it is written
)

// verifyPayload returns an error unless the payload, in pieces, is the one that was sent, as far as the frame says.
func (h *frameHeader) verifyPayload(payload ...[]byte) error {
	if h.ownSums {
		return nil
	}
	var sum uint32
	for _, p := range payload {
		sum = crc32.Update(sum, castagnoli, p)
	}
	if sum != h.payloadCRC {
		return errPayloadCRC
	}
	return nil
}

// encode fills f with a frame. The header is copied, the payload is not.
func (f *outFrame) encode(h frameHeader, header []byte, payload [][]byte) {
	h.headerBytes = len(header)
	h.headerCRC = crc32.Checksum(header, castagnoli)
	h.payloadBytes, h.payloadCRC = 0, 0
	for _, p := range payload {
		h.payloadBytes += len(p)
		if !h.ownSums {
			h.payloadCRC = crc32.Update(h.payloadCRC, castagnoli, p)
		}
	}
	f.head = append(h.appendTo(f.head[:0]), header...)
	f.payload = payload
	f.size = int64(len(f.head) + h.payloadBytes)
}

// checkSize returns an error of KindInvalid if a frame with these parts may not be sent.
func checkSize(op string, header []byte, payload [][]byte) (sizeBytes int64, err error) {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	if len(header) > MaxHeaderBytes || n > MaxPayloadBytes {
		return 0, storage.E(op, storage.KindInvalid, "", fmt.Errorf(
			"header of %d bytes and payload of %d bytes, at most %d and %d are allowed",
			len(header), n, MaxHeaderBytes, MaxPayloadBytes))
	}
	return int64(frameHeaderBytes + len(header) + n), nil
}
