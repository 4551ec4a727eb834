package csi

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api/hostfs"
)

// Who waits with a deadline hears why before it ends, and not only that it has ended. The line is the deadline in intercept.
func TestReasonArrives(t *testing.T) {
	for has, margin := range map[time.Duration]time.Duration{2 * time.Minute: time.Second, 5 * time.Second: 500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), has)
			defer cancel()
			began := time.Now()
			_, err := NewServer(Config{}).intercept(ctx, nil, &grpc.UnaryServerInfo{}, func(ctx context.Context, _ any) (any, error) {
				<-ctx.Done()
				return nil, storage.E("format", storage.KindCanceled, "device /dev/x", fmt.Errorf("%w, and %w", ctx.Err(), hostfs.ErrPending))
			})
			if took := time.Since(began); took != has-margin || ctx.Err() != nil {
				t.Errorf("of a caller that waits for %s a call ended after %s", has, took)
			}
			if status.Code(err) != codes.DeadlineExceeded || status.Convert(err).Message() != "format device /dev/x: context deadline exceeded, and "+hostfs.ErrPending.Error() {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}
