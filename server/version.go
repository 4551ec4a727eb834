package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/storaged/storaged/server/catalog"
)

// raiseAgain is how long a node waits after it could not raise the format of a store.
const raiseAgain = 10 * time.Second

// catalogCopy is a node's copy of the catalog. *control.Controller implements it, and says what its methods promise.
type catalogCopy interface {
	Changed() (index uint64, next <-chan struct{})
	View(fn func(*catalog.State)) catalog.Freshness
}

// followVersion has the stores raised to the format of the version in force, as soon as this node's copy of the catalog shows it,
// until ctx is done. A store remembers its format: a node that starts without a leader goes on with what it wrote before.
func followVersion(ctx context.Context, c catalogCopy, raise func(format int) error, logger *slog.Logger) {
	said := ""
	for raised := 0; ; {
		_, changed := c.Changed()
		var format int
		c.View(func(s *catalog.State) { format = catalog.StoreFormat(s.InForce()) })
		var again <-chan time.Time
		if format > raised {
			err := raise(format)
			if err == nil {
				raised = format
			} else {
				again = time.After(raiseAgain)
				if err.Error() != said { // a disk that has failed stays so
					said = err.Error()
					logger.Warn("the format of a store was not raised; it is tried again", "format", format, "error", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}
