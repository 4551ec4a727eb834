package volumetest

import (
	"errors"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/replication/op"
)

// Method names a call of volume.Cluster.
type Method string

// The methods that faults can be scripted for.
const (
	Propose       Method = "propose"
	Read          Method = "read"
	Status        Method = "status"
	MappedExtents Method = "mapped extents"
	Attach        Method = "attach" // of the catalog
	Detach        Method = "detach"
	OpenSession   Method = "open session"
	CloseSession  Method = "close session"
	WatchVolume   Method = "watch volume"
)

// Call is one call as a fault script sees it.
type Call struct {
	Method Method
	Node   storage.NodeID
	Number int             // calls of this cluster, from 1
	Group  storage.GroupID // Propose, Read, Status, MappedExtents
	Op     op.Op           // Propose
	Read   op.ReadRequest  // Read
	Closed bool            // Detach
}

// Fault is what happens to one call. The zero value is none.
type Fault struct {
	// Err is returned at once; the call is not delivered.
	Err error
	// Refuse, if not KindNone, is the final result of a Propose that is not applied.
	Refuse storage.Kind
	// Delay and Hold postpone the delivery. When the caller's context ends first, the caller gets KindUnavailable and
	// the copy stays on its way: it is delivered when the time has come or Hold is closed.
	Delay time.Duration
	Hold  <-chan struct{}
	// LoseAnswer delivers the call and answers KindUnavailable.
	LoseAnswer bool
	// Duplicate, if not zero, delivers a Propose a second time, that much later; its answer is lost.
	Duplicate time.Duration
	// FlipBit damages the answer of a Read on its way.
	FlipBit bool
}

// Unavailable is the error of a lost call.
func Unavailable(why string) error {
	return storage.E("call", storage.KindUnavailable, "fake cluster", errors.New(why))
}

// NotLeader is the error of a call that reached a replica that does not lead.
func NotLeader() error { return storage.E("call", storage.KindNotLeader, "fake cluster", nil) }
