package nbdclient

import (
	"context"
	"errors"
	"net"

	"github.com/storaged/storaged/nbd"
)

// Negotiate takes a connection to an export to the point where requests may be sent, with simple replies only, and leaves
// it there: for the kernel, which sends requests and knows nothing of what comes before. It returns what the server says of
// the export and the transmission flags. nc stays the caller's.
func Negotiate(ctx context.Context, nc net.Conn, export string) (info nbd.ExportInfo, flags uint16, err error) {
	h, err := negotiate(ctx, nc, Config{Export: export, SimpleReplies: true}, (*handshake).enter)
	if err == nil && h.in.Buffered() > 0 {
		err = errors.New("the server speaks before it is asked")
	}
	return h.info, h.flags, clientError("negotiate", export, err)
}
