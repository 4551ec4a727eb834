package hostgateway

import (
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/internal/doors"
)

// Most descriptors of the gateway are for its devices, and for connections to the nodes, which it makes again while the devices
// wait. So clients that connect get only a part of them.
type ports struct{ socket, http doors.Door }

const (
	maxPortConnections = 256
	// leastDescriptors is for three nodes, some devices, and callers.
	leastDescriptors = 128
)

// sharePorts shares out an eighth each of what the process may have open (RLIMIT_NOFILE; Go has raised it to the hard limit).
func sharePorts(logger *slog.Logger) (ports, error) {
	limit := unix.Rlimit{Cur: 1 << 20}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		logger.Warn("the limit of open files is not known", "error", err)
	}
	if limit.Cur < leastDescriptors {
		return ports{}, storage.E("start", storage.KindInvalid, "limit of open files", fmt.Errorf(
			"%d files and connections are too few for devices and nodes: raise it to %d or more (ulimit -n, LimitNOFILE= in systemd, the runtime's setting for containers)",
			limit.Cur, leastDescriptors))
	}
	each := int(min(maxPortConnections, limit.Cur/8))
	refusals := doors.NewRefusals(logger)
	return ports{socket: doors.Door{Shares: doors.NewShares(each, each), Refused: refusals.Port("socket", each)},
		http: doors.Door{Shares: doors.NewShares(each, each/4), Refused: refusals.Port("HTTP", each)}}, nil
}
