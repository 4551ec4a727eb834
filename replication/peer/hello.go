package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/storaged/storaged"
)

// ProtocolVersion is the version of the peer protocol that this code speaks.
const ProtocolVersion = 2

// helloBytes is the length of a hello and of its answer; layout in docs/format/peer.md.
const helloBytes = 56

const (
	helloMagic  = "STPEERHI" // from the side that dialled
	answerMagic = "STPEEROK" // from the side that accepted
)

// hello is the first message of both sides on every connection.
type hello struct {
	version uint16
	lane    Lane
	code    helloCode // hello: lone, helloPart or helloClient; answer: accepted or why not
	cluster storage.ClusterID
	from    storage.NodeID // the speaker; 0: has no id yet
	to      storage.NodeID // whom the speaker wants to reach; 0: whoever it is
	nonce   uint64         // the same on all connections of a set
}

type helloCode uint8

const (
	helloPart helloCode = 1 // hello: one lane of a set
	helloLone helloCode = 2 // hello: a set of one connection, for a single call
	// hello: one lane of a set of a gateway outside of the nodes; from is 0
	helloClient helloCode = 3

	helloAccepted      helloCode = 16
	helloWrongVersion  helloCode = 17
	helloWrongCluster  helloCode = 18
	helloWrongNode     helloCode = 19
	helloBadLane       helloCode = 20
	helloTooMany       helloCode = 21
	helloWithoutNodeID helloCode = 22
	helloClientsOnly   helloCode = 23
)

func (h *hello) appendTo(b []byte, magic string) []byte {
	at := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, h.version)
	b = append(b, byte(h.lane), byte(h.code))
	b = append(b, h.cluster[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.from))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.to))
	b = binary.LittleEndian.AppendUint64(b, h.nonce)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

var errNotAPeer = errors.New("the other side does not speak the peer protocol of storaged")

// parseHello checks and decodes b, which holds helloBytes bytes. A message of another version is decoded as far as
// all versions agree: magic, version, and nothing else.
func parseHello(b []byte, magic string) (h hello, err error) {
	if string(b[:8]) != magic {
		return h, errNotAPeer
	}
	h.version = binary.LittleEndian.Uint16(b[8:])
	if h.version != ProtocolVersion {
		return h, nil
	}
	if crc32.Checksum(b[:helloBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[helloBytes-4:]) {
		return h, errors.New("the checksum of the peer's greeting does not match")
	}
	h.lane, h.code = Lane(b[10]), helloCode(b[11])
	copy(h.cluster[:], b[12:28])
	h.from = storage.NodeID(binary.LittleEndian.Uint32(b[28:]))
	h.to = storage.NodeID(binary.LittleEndian.Uint32(b[32:]))
	h.nonce = binary.LittleEndian.Uint64(b[36:])
	return h, nil
}

func readHello(r io.Reader, magic string) (hello, error) {
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return hello{}, err
	}
	return parseHello(b[:], magic)
}

func writeHello(w io.Writer, h hello, magic string) error {
	_, err := w.Write(h.appendTo(make([]byte, 0, helloBytes), magic))
	return err
}

// judge decides about the hello of a node that dialled: helloAccepted, or why not.
func (h *hello) judge(cluster storage.ClusterID, self storage.NodeID) helloCode {
	stranger := h.from == 0
	switch {
	case h.version != ProtocolVersion:
		return helloWrongVersion
	case h.cluster != cluster && !(stranger && h.code != helloClient && h.cluster.IsZero()):
		return helloWrongCluster
	case self == 0:
		return helloWithoutNodeID
	case h.to != 0 && h.to != self, h.from == self:
		return helloWrongNode
	case h.lane >= laneCount, h.code != helloPart && h.code != helloLone && h.code != helloClient, stranger && h.code == helloPart,
		!stranger && h.code == helloClient, h.code == helloLone && h.lane != Control:
		return helloBadLane
	}
	return helloAccepted
}

// refusal turns the answer to a hello into an error, nil if the hello was accepted by the node it was meant for.
func (h *hello) refusal(sent hello) error {
	switch {
	case h.version != ProtocolVersion || h.code == helloWrongVersion:
		return storage.E("", storage.KindUnsupported, "", fmt.Errorf(
			"the peer speaks version %d of the peer protocol, this node version %d", h.version, ProtocolVersion))
	case h.code == helloWrongCluster || !sent.cluster.IsZero() && h.cluster != sent.cluster:
		return storage.E("", storage.KindPermission, "", fmt.Errorf(
			"the peer belongs to cluster %v, this node to cluster %v", h.cluster, sent.cluster))
	case h.code == helloWithoutNodeID:
		return storage.E("", storage.KindUnavailable, "", errors.New("the peer has not joined a cluster yet"))
	case h.code == helloWrongNode || sent.to != 0 && h.from != sent.to:
		return storage.E("", storage.KindPermission, "", fmt.Errorf(
			"node %v answers at the address of node %v (called by node %v)", h.from, sent.to, sent.from))
	case h.code == helloClientsOnly:
		return storage.E("", storage.KindPermission, "", errors.New(
			"the certificate is one of gateways (organizational unit "+ClientUnit+"): it does not make a node"))
	case h.code == helloTooMany:
		return storage.E("", storage.KindUnavailable, "", errors.New("the peer has too many connections"))
	case h.code != helloAccepted || h.nonce != sent.nonce || h.lane != sent.lane:
		return storage.E("", storage.KindInternal, "", fmt.Errorf(
			"the peer answered the greeting of lane %v with code %d", sent.lane, h.code))
	}
	return nil
}
