package node

import (
	"context"
	"fmt"
	"net"

	"google.golang.org/grpc"
	pluginregistration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrySocket is in the folder where kubelet looks for who has a plugin.
const registrySocket = "/var/lib/kubelet/plugins_registry/" + driverName + "-reg.sock"

// register answers kubelet, which looks into the registry's folder for who has a plugin.
func (n *Node) register() error {
	listener, err := net.Listen("unix", registrySocket)
	if err != nil {
		return fmt.Errorf("register the driver: %w", err)
	}
	server := grpc.NewServer()
	pluginregistration.RegisterRegistrationServer(server, registrar{})
	n.registration = server
	n.servers = append(n.servers, func() error { server.Stop(); return nil })
	go func() { _ = server.Serve(listener) }() // ends when it is stopped
	return nil
}

// registrar stands for the driver's node-driver-registrar. That a registration failed shows in the CSINode, which lacks the driver.
type registrar struct {
	pluginregistration.UnimplementedRegistrationServer
}

// GetInfo says where the driver answers.
func (registrar) GetInfo(context.Context, *pluginregistration.InfoRequest) (*pluginregistration.PluginInfo, error) {
	return &pluginregistration.PluginInfo{
		Type: pluginregistration.CSIPlugin, Name: driverName, Endpoint: driverSocket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus takes note of nothing.
func (registrar) NotifyRegistrationStatus(context.Context, *pluginregistration.RegistrationStatus) (*pluginregistration.RegistrationStatusResponse, error) {
	return &pluginregistration.RegistrationStatusResponse{}, nil
}
