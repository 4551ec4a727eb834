package api

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	storage "github.com/storaged/storaged"
)

// noCluster is never asked.
type noCluster struct{ Cluster }

// A node that waits for something says what it is before its caller gives up, and no request takes longer than the limit.
func TestWhatANodeWaitsForIsTold(t *testing.T) {
	const limit = time.Minute
	s, err := NewServer(Config{Cluster: noCluster{}, Limits: Limits{Timeout: limit}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	waits := func(ctx context.Context, _ any) (any, error) {
		<-ctx.Done()
		return nil, storage.E("ask the catalog", storage.KindUnavailable, "", errors.New("nobody leads it"))
	}
	for patience, want := range map[time.Duration]time.Duration{0: limit, time.Hour: limit, 10 * time.Second: 10*time.Second - maxTelling,
		time.Second: 900 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if patience > 0 {
				ctx, cancel = context.WithTimeout(ctx, patience)
				defer cancel()
			}
			began := time.Now()
			_, err := s.intercept(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/storage.v1.Nodes/List"}, waits)
			if err == nil || !strings.Contains(err.Error(), "nobody leads it") || ctx.Err() != nil || time.Since(began) != want {
				t.Errorf("a caller that waits %v: after %v %v, %v; want it told after %v", patience, time.Since(began), err, ctx.Err(), want)
			}
		})
	}
}
