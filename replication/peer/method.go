package peer

import "strconv"

// Lane selects the connection of a peer on which a request travels. Lanes do not wait for one another.
type Lane uint8

// The lanes.
const (
	// Control carries what must never wait behind data: heartbeats, votes, keepalives.
	Control Lane = iota
	// Data carries log entries, proposals and reads.
	Data
	// Bulk carries repair and everything else that is large and patient.
	Bulk

	laneCount = 3
)

var laneNames = [laneCount]string{"control", "data", "bulk"}

// String returns the lane's name, as in metrics.
func (l Lane) String() string {
	if l < laneCount {
		return laneNames[l]
	}
	return "lane " + strconv.Itoa(int(l))
}

// Method says what a request asks for. Numbers are part of the protocol and never reused; docs/format/peer.md lists them. Zero is
// not valid. What a method means is known to those who register and call it. Any lane is accepted.
type Method uint16

// Audience says who may call a method.
type Audience uint8

// The callers there are.
const (
	Members   Audience = 1 << iota // nodes with an id in the cluster
	Gateways                       // gateways of hosts, which are no nodes
	Strangers                      // nodes that have no id in the cluster yet
)

// Terms say how a method is served.
type Terms struct {
	From  Audience // who may call it; others are refused before the handler sees the request
	Order Order
	// SumsInRequests says that the payloads of requests may carry checksums of their own, which the handler verifies, SumsInAnswers that
	// those of answers do, which the caller verifies (Request.SumsInAnswer).
	SumsInRequests, SumsInAnswers bool
	// Layout, if there is one, is asked where the payload of a large request is to be received: see Layout.
	Layout Layout
}

// Layout returns slices that a request's payload of payloadBytes fills one after another, so that what a handler keeps, and
// writes to a disk, lies as it needs it without being copied. The payload is then Inbound's TakeParts, and belongs to
// the handler. header is the request's: its checksum is right, what it says is not to be trusted. It is not valid after the
// return. If the slices do not hold exactly payloadBytes, nil for example, the request is received as if there were no Layout.
// It runs where the connection is read and must not block.
type Layout func(header []byte, payloadBytes int) [][]byte

// layoutBytes is the payload from which a Layout is asked: what is smaller is cheap to copy.
const layoutBytes = 64 << 10

// Order says how the requests of a method are handed to its handler.
type Order uint8

const (
	// Ordered: requests of one (peer, group) in the order of their arrival, the next after the handler returned.
	// The reply may be given later. All Ordered methods of a group share one queue.
	Ordered Order = 1 + iota
	// Concurrent: each request on a goroutine of its own, within limits.
	Concurrent
)
