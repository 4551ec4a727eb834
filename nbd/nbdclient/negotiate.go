package nbdclient

import (
	"context"
	"errors"
	"net"

	"github.com/storaged/storaged/nbd"
	"github.com/storaged/storaged/nbd/internal/wire"
)

// Negotiate takes a connection to an export to the point where requests may be sent, with simple replies only, and leaves
// it there: for the kernel, which sends requests and knows nothing of what comes before. It returns what the server says of
// the export and the transmission flags. nc stays the caller's.
func Negotiate(ctx context.Context, nc net.Conn, export string) (info nbd.ExportInfo, flags uint16, err error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.Close() })
	defer stop()
	h := &handshake{nc: nc, in: wire.NewInbound(nc), cfg: Config{Export: export, SimpleReplies: true}}
	err = h.enter()
	if err == nil && h.in.Buffered() > 0 {
		err = errors.New("the server speaks before it is asked")
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return h.info, h.flags, clientError("negotiate", export, err)
}
