package catalog

import (
	"errors"
	"fmt"
	"math"
	"time"

	storage "github.com/storaged/storaged"
)

// NeverHeard is the age of a copy that no leader has confirmed since the process started.
const NeverHeard = time.Duration(math.MaxInt64)

// Freshness says how good a node's copy of the catalog is.
type Freshness struct {
	Index uint64 // of the last command the copy holds
	// Age is how long ago the leader was last heard, 0 on the leader itself. The copy lacks what was committed since then, and
	// may lack what was committed up to two CommitTimeouts before. NeverHeard: not since the process started.
	Age    time.Duration
	Leader storage.NodeID // 0: nobody known
}

// ErrUnread is why a node without a copy of the catalog says nothing about what there is: an empty answer would say that
// there is nothing.
var ErrUnread = errors.New("this node has not read the catalog since it was started; ask another one, or bring up nodes until a majority runs")

// NotKnown is the answer of a node that could not ask the catalog's leader. What is not known is not denied: whoever hears that
// a volume does not exist may make another one, or forget it.
func NotKnown(op, subject string, err error) error {
	kind := storage.KindUnavailable
	if storage.KindOf(err) == storage.KindCanceled {
		kind = storage.KindCanceled
	}
	return storage.E(op, kind, subject, fmt.Errorf("it is not known: %w", err))
}
