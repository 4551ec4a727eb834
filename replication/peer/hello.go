package peer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	storage "github.com/storaged/storaged"
)

// helloLayout is the number of a hello's layout, for ever. The version of what follows the hellos is agreed on in them.
const helloLayout = 2

// helloBytes is the length of a hello and of its answer, helloStartBytes that of the part which is the same in every layout;
// layout in docs/format/peer.md.
const (
	helloBytes      = 400
	helloStartBytes = 10
)

// MaxAddressBytes and MaxProcessBytes bound two texts of a hello.
const (
	MaxAddressBytes = 255
	MaxProcessBytes = 63
)

const (
	helloMagic  = "STPEERHI" // from the side that dialled
	answerMagic = "STPEEROK" // from the side that accepted
)

// hello is the first message of both sides on every connection.
type hello struct {
	layout  uint16
	lane    Lane
	code    helloCode // hello: lone, helloPart or helloClient; answer: accepted or why not
	cluster storage.ClusterID
	from    storage.NodeID // the speaker; 0: has no id yet
	to      storage.NodeID // whom the speaker wants to reach; 0: whoever it is
	nonce   uint64         // the same on all connections of a set
	speaker Speaker
	// speaks are the versions that the speaker knows. In an answer with any code but helloWrongVersion it is the one chosen.
	speaks versions
	// recovery is the recovery that the speaker follows, 0: none; see Config.Recovery.
	recovery uint32
}

// Speaker is the process that says a hello. In an answer of helloSecondProcess it is the process that was there before.
type Speaker struct {
	Instance uint64 // random, new at every start; 0: not told
	Starts   uint64 // how often the node has been started: of two addresses of one node that with more starts is the newer
	List     uint64 // of a node without a cluster: the list of nodes that make one together (see Founders); 0: it only joins
	Address  string // at which the node is reached, HOST:PORT; empty: not told
	Process  string // for people: host and process id
}

func (s *Speaker) cut() {
	s.Address, s.Process = s.Address[:min(len(s.Address), MaxAddressBytes)], s.Process[:min(len(s.Process), MaxProcessBytes)]
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
	helloSecondProcess helloCode = 24
	helloSilent        helloCode = 25
	helloWithoutRoom   helloCode = 26
	helloOtherRecovery helloCode = 27
)

func (h *hello) appendTo(b []byte, magic string) []byte {
	at := len(b)
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, h.layout)
	b = append(b, byte(h.lane), byte(h.code))
	b = append(b, h.cluster[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(h.from))
	b = binary.LittleEndian.AppendUint32(b, uint32(h.to))
	b = binary.LittleEndian.AppendUint64(b, h.nonce)
	s := h.speaker
	s.cut()
	b = binary.LittleEndian.AppendUint64(b, s.Instance)
	b = binary.LittleEndian.AppendUint64(b, s.Starts)
	b = binary.LittleEndian.AppendUint64(b, s.List)
	b = appendText(b, s.Address, MaxAddressBytes)
	b = appendText(b, s.Process, MaxProcessBytes)
	b = binary.LittleEndian.AppendUint16(b, h.speaks.min)
	b = binary.LittleEndian.AppendUint16(b, h.speaks.max)
	b = binary.LittleEndian.AppendUint32(b, h.recovery)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], castagnoli))
}

// appendText appends a length and a field of limit bytes that begins with text; the rest is zeroes.
func appendText(b []byte, text string, limit int) []byte {
	b = append(b, byte(len(text)))
	b = append(b, text...)
	return append(b, make([]byte, limit-len(text))...)
}

// parseText is the inverse of appendText for b, whose first byte is the length. What is not printable ASCII is refused: it goes
// to logs and terminals.
func parseText(b []byte) (string, error) {
	n := int(b[0])
	if n >= len(b) {
		return "", errors.New("a text in the peer's greeting is longer than its field")
	}
	for _, c := range b[1 : 1+n] {
		if c <= ' ' || c > '~' {
			return "", errors.New("a text in the peer's greeting has characters that it cannot have")
		}
	}
	return string(b[1 : 1+n]), nil
}

var errNotAPeer = errors.New("the other side does not speak the peer protocol of storaged")

// parseLayout checks the part of a hello that all layouts agree on.
func parseLayout(b []byte, magic string) (uint16, error) {
	if string(b[:8]) != magic {
		return 0, errNotAPeer
	}
	return binary.LittleEndian.Uint16(b[8:]), nil
}

// parseHello checks and decodes b, which holds helloBytes bytes of a message of helloLayout.
func parseHello(b []byte, magic string) (h hello, err error) {
	if h.layout, err = parseLayout(b, magic); err != nil {
		return h, err
	}
	if crc32.Checksum(b[:helloBytes-4], castagnoli) != binary.LittleEndian.Uint32(b[helloBytes-4:]) {
		return h, errors.New("the checksum of the peer's greeting does not match")
	}
	h.lane, h.code = Lane(b[10]), helloCode(b[11])
	copy(h.cluster[:], b[12:28])
	h.from = storage.NodeID(binary.LittleEndian.Uint32(b[28:]))
	h.to = storage.NodeID(binary.LittleEndian.Uint32(b[32:]))
	h.nonce = binary.LittleEndian.Uint64(b[36:])
	h.speaker.Instance = binary.LittleEndian.Uint64(b[44:])
	h.speaker.Starts = binary.LittleEndian.Uint64(b[52:])
	h.speaker.List = binary.LittleEndian.Uint64(b[60:])
	if h.speaker.Address, err = parseText(b[68 : 69+MaxAddressBytes]); err != nil {
		return h, err
	}
	if h.speaker.Process, err = parseText(b[69+MaxAddressBytes : 70+MaxAddressBytes+MaxProcessBytes]); err != nil {
		return h, err
	}
	h.recovery = binary.LittleEndian.Uint32(b[helloBytes-8:])
	h.speaks, err = parseVersions(b[70+MaxAddressBytes+MaxProcessBytes:], h.layout)
	return h, err
}

// parseVersions decodes the range at the beginning of b. Zeroes come from builds that know the version with the layout's number only.
func parseVersions(b []byte, layout uint16) (versions, error) {
	v := versions{min: binary.LittleEndian.Uint16(b), max: binary.LittleEndian.Uint16(b[2:])}
	switch {
	case v == versions{}:
		return versions{min: layout, max: layout}, nil
	case v.min == 0 || v.min > v.max:
		return v, fmt.Errorf("the peer's greeting has versions %d to %d, which is no range", v.min, v.max)
	}
	return v, nil
}

// ErrWithoutRoom is in the error of whoever calls a node that runs, but cannot begin: see Transport.Lobby.
var ErrWithoutRoom = errors.New("the node has no room on the file system of its data directory, and waits for some")

// readHello reads a hello. Of another layout it reads, and returns, the number only: the rest has another length.
func readHello(r io.Reader, magic string) (hello, error) {
	var b [helloBytes]byte
	if _, err := io.ReadFull(r, b[:helloStartBytes]); err != nil {
		return hello{}, err
	}
	if layout, err := parseLayout(b[:], magic); err != nil || layout != helloLayout {
		return hello{layout: layout, speaks: versions{min: layout, max: layout}}, err
	}
	if _, err := io.ReadFull(r, b[helloStartBytes:]); err != nil {
		return hello{}, err
	}
	return parseHello(b[:], magic)
}

func writeHello(w io.Writer, h hello, magic string) error {
	_, err := w.Write(h.appendTo(make([]byte, 0, helloBytes), magic))
	return err
}

// judge decides about the hello of a node that dialled: helloAccepted, or why not.
func (h *hello) judge(cluster storage.ClusterID, self storage.NodeID, own versions) helloCode {
	stranger := h.from == 0
	switch {
	case h.layout != helloLayout, own.common(h.speaks) == 0:
		return helloWrongVersion
	case self == 0:
		return helloWithoutNodeID
	case h.cluster != cluster && !(stranger && h.code != helloClient && h.cluster.IsZero()):
		return helloWrongCluster
	case h.to != 0 && h.to != self, h.from == self:
		return helloWrongNode
	case h.lane >= laneCount, h.code != helloPart && h.code != helloLone && h.code != helloClient, stranger && h.code == helloPart,
		!stranger && h.code == helloClient, h.code == helloLone && h.lane != Control:
		return helloBadLane
	}
	return helloAccepted
}

// follows returns helloOtherRecovery if the speaker is a member that follows another recovery than this side. Gateways and nodes without
// an id follow none.
func (h *hello) follows(recovery uint32) helloCode {
	if h.from != 0 && h.recovery != recovery {
		return helloOtherRecovery
	}
	return helloAccepted
}

// RecoveryError says that a node follows another recovery of the cluster than its peer: one of the two must not run with what it has.
type RecoveryError struct{ Own, Peer uint32 }

// Error implements error.
func (e *RecoveryError) Error() string {
	if e.Peer == 0 {
		return fmt.Sprintf("the cluster was recovered (%08x) without the peer, which has what it had before: stop it, and run `storaged recover "+
			"--follow` on its data directory, or start it with an empty one and --join HOST", e.Own)
	}
	own := "what it had before"
	if e.Own != 0 {
		own = fmt.Sprintf("recovery %08x", e.Own)
	}
	return fmt.Sprintf("the cluster was recovered (%08x) without this node, which has %s: stop it, and run `storaged recover --follow` on its "+
		"data directory, or start it with an empty one and --join HOST", e.Peer, own)
}

// refusal turns the answer to a hello into an error, nil if the hello was accepted by the node it was meant for.
func (h *hello) refusal(sent hello) error {
	switch {
	case h.layout != helloLayout || h.code == helloWrongVersion || sent.speaks.common(h.speaks) == 0:
		return versionsError(sent.speaks, h.speaks)
	case h.code == helloWithoutNodeID:
		return storage.E("", storage.KindUnavailable, "", errors.New("the peer has not joined a cluster yet"))
	case h.code == helloWrongCluster || !sent.cluster.IsZero() && h.cluster != sent.cluster:
		return storage.E("", storage.KindPermission, "", fmt.Errorf(
			"the peer belongs to cluster %v, this node to cluster %v", h.cluster, sent.cluster))
	case h.code == helloOtherRecovery, h.code == helloAccepted && sent.from != 0 && h.recovery != sent.recovery:
		// Guards I7: whoever has the logs of before must be counted by nobody who goes on without them. A build that knows no recoveries
		// answers with none, and accepts.
		return storage.E("", storage.KindPermission, "", &RecoveryError{Own: sent.recovery, Peer: h.recovery})
	case h.code == helloSecondProcess:
		return storage.E("", storage.KindConflict, "", &SecondProcessError{Node: sent.from, Other: h.speaker})
	case h.code == helloWrongNode || sent.to != 0 && h.from != sent.to:
		return storage.E("", storage.KindPermission, "", fmt.Errorf(
			"node %v answers at the address of node %v (called by node %v)", h.from, sent.to, sent.from))
	case h.code == helloClientsOnly:
		return storage.E("", storage.KindPermission, "", errors.New(
			"the certificate is one of gateways (organizational unit "+ClientUnit+"): it does not make a node"))
	case h.code == helloSilent:
		return storage.E("", storage.KindUnavailable, "", fmt.Errorf(
			"the process that answers, %s, keeps silent, because another one is the node, too", orUnknown(h.speaker.Process)))
	case h.code == helloWithoutRoom:
		return storage.E("", storage.KindUnavailable, "", ErrWithoutRoom)
	case h.code == helloTooMany:
		return storage.E("", storage.KindUnavailable, "", errors.New("the peer has too many connections"))
	case h.code != helloAccepted || h.nonce != sent.nonce || h.lane != sent.lane || h.speaks.min != h.speaks.max:
		return storage.E("", storage.KindInternal, "", fmt.Errorf(
			"the peer answered the greeting of lane %v with code %d", sent.lane, h.code))
	}
	return nil
}
