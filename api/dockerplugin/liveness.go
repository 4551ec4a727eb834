package dockerplugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
)

// Answers returns nil if a plugin of volumes answers on the socket before ctx ends. It asks as a new engine would, over a new
// connection. It asks nothing that needs the cluster or the gateway: to restart the plugin would not repair those.
func Answers(ctx context.Context, socket string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("the plugin does not answer on %s: %w", socket, err)
		}
	}()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://plugin/Plugin.Activate", strings.NewReader("{}"))
	if err != nil {
		return err
	}
	answer, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	var says struct{ Implements []string }
	err = json.NewDecoder(io.LimitReader(answer.Body, 64<<10)).Decode(&says)
	if err = errors.Join(err, answer.Body.Close()); err == nil && !slices.Contains(says.Implements, "VolumeDriver") {
		err = fmt.Errorf("what answers with %s has no volumes but %q", answer.Status, says.Implements)
	}
	return err
}
