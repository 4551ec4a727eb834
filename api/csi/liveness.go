package csi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// LivenessTimeout is how long a driver that lives may take to answer.
const LivenessTimeout = 5 * time.Second

// NewLiveness returns what answers GET /livez: ok, if the driver of that name answers on its socket within the time-out. It asks as
// a new caller would, over a new connection, and asks nothing that needs the cluster or the gateway. While those do not answer the
// driver is not ready (Identity.Probe), but to restart it would not repair that.
func NewLiveness(socket, name string, timeout time.Duration) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), timeout)
		defer cancel()
		if err := answers(ctx, socket, name); err != nil {
			http.Error(w, fmt.Sprintf("the driver does not answer on %s: %v", socket, err), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok") // who asked has gone if this fails
	})
	return mux
}

// answers asks the driver on a socket for its name.
func answers(ctx context.Context, socket, name string) (err error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	info, err := spec.NewIdentityClient(conn).GetPluginInfo(ctx, &spec.GetPluginInfoRequest{})
	if err == nil && info.GetName() != name {
		err = fmt.Errorf("the driver %s is there, not %s", info.GetName(), name)
	}
	return err
}
