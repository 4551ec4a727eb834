package volume_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/gateway/volume"
	"github.com/storaged/storaged/gateway/volume/volumetest"
)

// TestOpenSaysWhatItWaitedFor: a caller whose time ends while a volume is opened hears what the attempts had met, and not only that time
// is over: of the catalog, and of the groups in which an earlier session is to be closed.
// Guards, in gateway.go: askCatalog's endedAfter, and insist's in session.go.
func TestOpenSaysWhatItWaitedFor(t *testing.T) {
	bubble(t, func(t *testing.T, c *volumetest.Cluster) {
		earlier := start(t, c, nil)
		mustWrite(t, open(t, earlier, "data"), pattern(block, 1), 0) // a session that the next gateway has to close
		g := start(t, c, nil)
		for name, methods := range map[string]func(volumetest.Method) bool{
			"the catalog": func(m volumetest.Method) bool { return m != volumetest.Propose },
			"the groups":  func(m volumetest.Method) bool { return m == volumetest.Propose },
		} {
			c.SetFault(func(call volumetest.Call) volumetest.Fault {
				if !methods(call.Method) {
					return volumetest.Fault{}
				}
				return volumetest.Fault{Err: volumetest.Unavailable("its disks are full")}
			})
			ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
			_, err := g.Open(ctx, "data", volume.OpenOptions{Access: storage.AccessShared})
			cancel()
			if !errors.Is(err, context.DeadlineExceeded) || storage.KindOf(err) != storage.KindCanceled || !strings.Contains(err.Error(), "its disks are full") {
				t.Errorf("%s: %v", name, err)
			}
			c.SetFault(nil)
		}
	})
}
