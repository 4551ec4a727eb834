package csi

import (
	"context"

	storage "github.com/storaged/storaged"
	"github.com/storaged/storaged/api"
)

// Cluster is what the controller asks of a storaged cluster: a part of api.Cluster, which says what the methods promise.
// api/client implements it. A limit of 0 means all.
type Cluster interface {
	CreateVolume(ctx context.Context, v api.NewVolume) (api.Volume, error)
	Volume(ctx context.Context, name string) (api.Volume, error)
	Volumes(ctx context.Context, f api.VolumeFilter, after string, limit int) ([]api.Volume, error)
	ResizeVolume(ctx context.Context, name string, size api.NewSize) (api.Volume, error)
	ModifyVolume(ctx context.Context, name string, id storage.VolumeID, change api.VolumeChange) (api.Volume, error)
	DeleteVolume(ctx context.Context, name string, id storage.VolumeID) error
	Attach(ctx context.Context, n api.NewAttachment) (api.Attachment, error)
	Detach(ctx context.Context, d api.Detachment) error
	Attachments(ctx context.Context, f api.AttachmentFilter, after storage.AttachmentID, limit int) ([]api.Attachment, error)
	Nodes(ctx context.Context) ([]api.Node, error)
	Groups(ctx context.Context) ([]api.Group, error)
	Status(ctx context.Context) (api.Status, error)
}

var _ Cluster = api.Cluster(nil)
