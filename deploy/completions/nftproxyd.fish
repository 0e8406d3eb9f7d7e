# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_nftproxyd_global_optspecs
    string join \n manifests= config= hostname-override= service-proxy-name= master= v/v= vmodule= logging-format= log-flush-frequency= log-text-split-stream= log-json-split-stream= log-text-info-buffer-size= log-json-info-buffer-size= feature-gates= kubeconfig= kube-api-content-type= kube-api-qps= kube-api-burst= bind-address= healthz-bind-address= metrics-bind-address= healthz-port= metrics-port= bind-address-hard-fail= profiling= show-hidden-metrics-for-version= proxy-mode= scheduler= count-connections= accounting= ping= reset-connections= iptables-masquerade-bit= masquerade-all= iptables-localhost-nodeports= iptables-sync-period= iptables-min-sync-period= ipvs-sync-period= ipvs-min-sync-period= ipvs-scheduler= ipvs-exclude-cidrs= ipvs-strict-arp= ipvs-tcp-timeout= ipvs-tcpfin-timeout= ipvs-udp-timeout= detect-local-mode= pod-bridge-interface= pod-interface-name-prefix= cluster-cidr= nodeport-addresses= oom-score-adj= conntrack-max-per-core= conntrack-min= conntrack-tcp-timeout-established= conntrack-tcp-timeout-close-wait= conntrack-tcp-be-liberal= conntrack-udp-timeout= conntrack-udp-timeout-stream= config-sync-period= boot-id-file= machine-id-file= write-config-to= take-over= table-owner= init-only= cleanup= V/version= h/help
end

function __fish_nftproxyd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_nftproxyd_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_nftproxyd_using_subcommand
    set -l cmd (__fish_nftproxyd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l manifests -d 'Proxy what the manifests in DIR say (*.yaml, *.yml, *.json) and follow their changes, instead of a cluster' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l config -d 'A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l hostname-override -d 'This node\'s name, instead of hostnameOverride in the configuration or the host name' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l service-proxy-name -d 'Serve only Services whose label service.kubernetes.io/service-proxy-name is NAME, in tables of their own, beside the kube-proxy that serves all others; its ports are left to it' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l master -d 'URL of the API server, instead of that in the kubeconfig' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -s v -l v -d 'Say more in the log: 2 for each sync, 5 for each transaction' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l vmodule -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l logging-format -d 'How the log is written: text or json [default: text]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l log-flush-frequency -d 'No effect: each line is written at once' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l log-text-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l log-json-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l log-text-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l log-json-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l feature-gates -d 'Switch features on or off' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l kubeconfig -d 'How to reach the API server [default: as a pod of the cluster]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l kube-api-content-type -d 'No effect: JSON is spoken' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l kube-api-qps -d 'No effect: only lists and watches are asked for' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l kube-api-burst -d 'No effect, as --kube-api-qps' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l bind-address -d 'This node\'s address, if it is to be another than in its Node object [default: 0.0.0.0]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l healthz-bind-address -d 'Where /healthz and /livez are served [default: 0.0.0.0:10256]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l metrics-bind-address -d 'Where /metrics and /proxyMode are served [default: 127.0.0.1:10249]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l healthz-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l metrics-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l bind-address-hard-fail -d 'Fail if the addresses for health or metrics cannot be listened on' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l profiling -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l show-hidden-metrics-for-version -d 'No effect: none is hidden' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l proxy-mode -d 'nftables, iptables or ipvs: nftables is what runs; the others choose defaults' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l scheduler -d 'How endpoints are chosen where a Service does not say, in any mode: random, rr, wrr, sh, dh, mh, lc, ...' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l count-connections -d 'Count the connections to each address and port of a Service' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l accounting -d 'Account for the connections of all Services by endpoint: packets and bytes' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ping -d 'Answer pings of the addresses of all Services that have endpoints' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l reset-connections -d 'Reset the TCP connections of all Services to endpoints that are gone' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l iptables-masquerade-bit -d 'The bit of the packet mark that asks for masquerading, in modes iptables and ipvs [default: 14]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l masquerade-all -d 'Masquerade all traffic to cluster IPs' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l iptables-localhost-nodeports -d 'Serve NodePorts on 127.0.0.1 and ::1 too' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l iptables-sync-period -d 'Pause before a failed sync is tried again [default: 30s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l iptables-min-sync-period -d 'Least time between two syncs [default: 0s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-sync-period -d 'As --iptables-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-min-sync-period -d 'As --iptables-min-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-scheduler -d 'How endpoints are chosen, in mode ipvs [default: rr]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-exclude-cidrs -d 'No effect: there are no IPVS rules' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-strict-arp -d 'No effect: Service addresses are not addresses of the node' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-tcp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-tcpfin-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l ipvs-udp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l detect-local-mode -d 'How traffic from pods is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l pod-bridge-interface -d 'The bridge of BridgeInterface' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l pod-interface-name-prefix -d 'That of InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l cluster-cidr -d 'The addresses of pods' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l nodeport-addresses -d 'The node\'s addresses that serve NodePorts: ranges, and the words primary (those of its Node object) and all' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l oom-score-adj -d 'From -1000 to 1000; less is killed later [default: -999]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-max-per-core -d 'Tracked connections for each CPU; 0 leaves the limit alone [default: 32768]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-min -d 'Least number of tracked connections [default: 131072]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-tcp-timeout-established -d 'How long an idle TCP connection is tracked; 0s leaves it alone [default: 24h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-tcp-timeout-close-wait -d 'The same in CLOSE_WAIT [default: 1h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-tcp-be-liberal -d 'Do not call packets outside of the TCP window invalid' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-udp-timeout -d 'How long a UDP flow without an answer is tracked; 0s leaves it alone' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l conntrack-udp-timeout-stream -d 'The same with answers' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l config-sync-period -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l boot-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l machine-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l write-config-to -d 'Write the configuration that is in force, with all defaults, to FILE and exit' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l take-over -d 'When all Services are in place, remove what kube-proxy has left: its tables of nftables, its chains of iptables, its part of IPVS. Nothing of others. Stop kube-proxy first; its rules stay until then' -r -f -a "true\t''
false\t''"
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l table-owner -d 'Whether nobody else can change the tables while this runs, which takes Linux 6.9. auto: where the kernel can do it, and what is left at the end is as without it, which every nft can read back. on: also after the end, until the next start, nft before 1.1.0 cannot read a saved ruleset. off: everybody can change them, and it is repaired' -r -f -a "auto\t'While it runs, where the kernel can do it'
on\t'They have to be, and stay as they are at the end'
off\t'Never'"
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l init-only -d 'Set up connection tracking, check that the kernel can do what is needed, and exit' -r -f -a "true\t''
false\t''"
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -l cleanup -d 'Remove nftproxyd\'s tables and exit, as the subcommand does' -r -f -a "true\t''
false\t''"
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -s V -l version -d 'Print the version and exit; raw also says what it was built of' -r
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -s h -l help -d 'Print help'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "run" -d 'Proxy the Services of a cluster, or of a folder of manifests, until stopped; the rules stay when it stops'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "render" -d 'Print the nft script of what would be installed for a folder of manifests; needs no root'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "check-config" -d 'Say whether a configuration file can be used, what in it has no effect, and how the API server is reached'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "doctor" -d 'Look for what keeps Services on this node from working, and say how to mend it; changes nothing'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "status" -d 'List every frontend with its policy, endpoints and open connections, as the kernel has them'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "explain" -d 'Say what becomes of a connection to a Service, and why: what this node\'s tables, routes and connections make of it'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "trace" -d 'Say what becomes of connections to an address or a Service while they are made, and who drops those that are dropped'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "cleanup" -d 'Remove nftproxyd\'s tables from the kernel, and nothing else'
complete -c nftproxyd -n "__fish_nftproxyd_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l manifests -d 'Proxy what the manifests in DIR say (*.yaml, *.yml, *.json) and follow their changes, instead of a cluster' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l config -d 'A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l hostname-override -d 'This node\'s name, instead of hostnameOverride in the configuration or the host name' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l service-proxy-name -d 'Serve only Services whose label service.kubernetes.io/service-proxy-name is NAME, in tables of their own, beside the kube-proxy that serves all others; its ports are left to it' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l master -d 'URL of the API server, instead of that in the kubeconfig' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -s v -l v -d 'Say more in the log: 2 for each sync, 5 for each transaction' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l vmodule -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l logging-format -d 'How the log is written: text or json [default: text]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l log-flush-frequency -d 'No effect: each line is written at once' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l log-text-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l log-json-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l log-text-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l log-json-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l feature-gates -d 'Switch features on or off' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l kubeconfig -d 'How to reach the API server [default: as a pod of the cluster]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l kube-api-content-type -d 'No effect: JSON is spoken' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l kube-api-qps -d 'No effect: only lists and watches are asked for' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l kube-api-burst -d 'No effect, as --kube-api-qps' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l bind-address -d 'This node\'s address, if it is to be another than in its Node object [default: 0.0.0.0]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l healthz-bind-address -d 'Where /healthz and /livez are served [default: 0.0.0.0:10256]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l metrics-bind-address -d 'Where /metrics and /proxyMode are served [default: 127.0.0.1:10249]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l healthz-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l metrics-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l bind-address-hard-fail -d 'Fail if the addresses for health or metrics cannot be listened on' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l profiling -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l show-hidden-metrics-for-version -d 'No effect: none is hidden' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l proxy-mode -d 'nftables, iptables or ipvs: nftables is what runs; the others choose defaults' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l scheduler -d 'How endpoints are chosen where a Service does not say, in any mode: random, rr, wrr, sh, dh, mh, lc, ...' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l count-connections -d 'Count the connections to each address and port of a Service' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l accounting -d 'Account for the connections of all Services by endpoint: packets and bytes' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ping -d 'Answer pings of the addresses of all Services that have endpoints' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l reset-connections -d 'Reset the TCP connections of all Services to endpoints that are gone' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l iptables-masquerade-bit -d 'The bit of the packet mark that asks for masquerading, in modes iptables and ipvs [default: 14]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l masquerade-all -d 'Masquerade all traffic to cluster IPs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l iptables-localhost-nodeports -d 'Serve NodePorts on 127.0.0.1 and ::1 too' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l iptables-sync-period -d 'Pause before a failed sync is tried again [default: 30s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l iptables-min-sync-period -d 'Least time between two syncs [default: 0s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-sync-period -d 'As --iptables-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-min-sync-period -d 'As --iptables-min-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-scheduler -d 'How endpoints are chosen, in mode ipvs [default: rr]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-exclude-cidrs -d 'No effect: there are no IPVS rules' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-strict-arp -d 'No effect: Service addresses are not addresses of the node' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-tcp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-tcpfin-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l ipvs-udp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l detect-local-mode -d 'How traffic from pods is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l pod-bridge-interface -d 'The bridge of BridgeInterface' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l pod-interface-name-prefix -d 'That of InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l cluster-cidr -d 'The addresses of pods' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l nodeport-addresses -d 'The node\'s addresses that serve NodePorts: ranges, and the words primary (those of its Node object) and all' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l oom-score-adj -d 'From -1000 to 1000; less is killed later [default: -999]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-max-per-core -d 'Tracked connections for each CPU; 0 leaves the limit alone [default: 32768]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-min -d 'Least number of tracked connections [default: 131072]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-tcp-timeout-established -d 'How long an idle TCP connection is tracked; 0s leaves it alone [default: 24h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-tcp-timeout-close-wait -d 'The same in CLOSE_WAIT [default: 1h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-tcp-be-liberal -d 'Do not call packets outside of the TCP window invalid' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-udp-timeout -d 'How long a UDP flow without an answer is tracked; 0s leaves it alone' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l conntrack-udp-timeout-stream -d 'The same with answers' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l config-sync-period -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l boot-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l machine-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l write-config-to -d 'Write the configuration that is in force, with all defaults, to FILE and exit' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l take-over -d 'When all Services are in place, remove what kube-proxy has left: its tables of nftables, its chains of iptables, its part of IPVS. Nothing of others. Stop kube-proxy first; its rules stay until then' -r -f -a "true\t''
false\t''"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l table-owner -d 'Whether nobody else can change the tables while this runs, which takes Linux 6.9. auto: where the kernel can do it, and what is left at the end is as without it, which every nft can read back. on: also after the end, until the next start, nft before 1.1.0 cannot read a saved ruleset. off: everybody can change them, and it is repaired' -r -f -a "auto\t'While it runs, where the kernel can do it'
on\t'They have to be, and stay as they are at the end'
off\t'Never'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l init-only -d 'Set up connection tracking, check that the kernel can do what is needed, and exit' -r -f -a "true\t''
false\t''"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -l cleanup -d 'Remove nftproxyd\'s tables and exit, as the subcommand does' -r -f -a "true\t''
false\t''"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -s V -l version -d 'Print the version and exit; raw also says what it was built of' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand run" -s h -l help -d 'Print help'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l manifests -d 'The folder of manifests' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l config -d 'A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l hostname-override -d 'This node\'s name, instead of hostnameOverride in the configuration or the host name' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l service-proxy-name -d 'Serve only Services whose label service.kubernetes.io/service-proxy-name is NAME, in tables of their own, beside the kube-proxy that serves all others; its ports are left to it' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l master -d 'URL of the API server, instead of that in the kubeconfig' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -s v -l v -d 'Say more in the log: 2 for each sync, 5 for each transaction' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l vmodule -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l logging-format -d 'How the log is written: text or json [default: text]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l log-flush-frequency -d 'No effect: each line is written at once' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l log-text-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l log-json-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l log-text-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l log-json-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l feature-gates -d 'Switch features on or off' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l kubeconfig -d 'How to reach the API server [default: as a pod of the cluster]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l kube-api-content-type -d 'No effect: JSON is spoken' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l kube-api-qps -d 'No effect: only lists and watches are asked for' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l kube-api-burst -d 'No effect, as --kube-api-qps' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l bind-address -d 'This node\'s address, if it is to be another than in its Node object [default: 0.0.0.0]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l healthz-bind-address -d 'Where /healthz and /livez are served [default: 0.0.0.0:10256]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l metrics-bind-address -d 'Where /metrics and /proxyMode are served [default: 127.0.0.1:10249]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l healthz-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l metrics-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l bind-address-hard-fail -d 'Fail if the addresses for health or metrics cannot be listened on' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l profiling -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l show-hidden-metrics-for-version -d 'No effect: none is hidden' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l proxy-mode -d 'nftables, iptables or ipvs: nftables is what runs; the others choose defaults' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l scheduler -d 'How endpoints are chosen where a Service does not say, in any mode: random, rr, wrr, sh, dh, mh, lc, ...' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l count-connections -d 'Count the connections to each address and port of a Service' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l accounting -d 'Account for the connections of all Services by endpoint: packets and bytes' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ping -d 'Answer pings of the addresses of all Services that have endpoints' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l reset-connections -d 'Reset the TCP connections of all Services to endpoints that are gone' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l iptables-masquerade-bit -d 'The bit of the packet mark that asks for masquerading, in modes iptables and ipvs [default: 14]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l masquerade-all -d 'Masquerade all traffic to cluster IPs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l iptables-localhost-nodeports -d 'Serve NodePorts on 127.0.0.1 and ::1 too' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l iptables-sync-period -d 'Pause before a failed sync is tried again [default: 30s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l iptables-min-sync-period -d 'Least time between two syncs [default: 0s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-sync-period -d 'As --iptables-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-min-sync-period -d 'As --iptables-min-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-scheduler -d 'How endpoints are chosen, in mode ipvs [default: rr]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-exclude-cidrs -d 'No effect: there are no IPVS rules' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-strict-arp -d 'No effect: Service addresses are not addresses of the node' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-tcp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-tcpfin-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l ipvs-udp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l detect-local-mode -d 'How traffic from pods is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l pod-bridge-interface -d 'The bridge of BridgeInterface' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l pod-interface-name-prefix -d 'That of InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l cluster-cidr -d 'The addresses of pods' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l nodeport-addresses -d 'The node\'s addresses that serve NodePorts: ranges, and the words primary (those of its Node object) and all' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l oom-score-adj -d 'From -1000 to 1000; less is killed later [default: -999]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-max-per-core -d 'Tracked connections for each CPU; 0 leaves the limit alone [default: 32768]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-min -d 'Least number of tracked connections [default: 131072]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-tcp-timeout-established -d 'How long an idle TCP connection is tracked; 0s leaves it alone [default: 24h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-tcp-timeout-close-wait -d 'The same in CLOSE_WAIT [default: 1h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-tcp-be-liberal -d 'Do not call packets outside of the TCP window invalid' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-udp-timeout -d 'How long a UDP flow without an answer is tracked; 0s leaves it alone' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l conntrack-udp-timeout-stream -d 'The same with answers' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l config-sync-period -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l boot-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -l machine-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand render" -s h -l help -d 'Print help'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand check-config" -s h -l help -d 'Print help'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -s o -l output -d 'How to print it' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l config -d 'A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l hostname-override -d 'This node\'s name, instead of hostnameOverride in the configuration or the host name' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l service-proxy-name -d 'Serve only Services whose label service.kubernetes.io/service-proxy-name is NAME, in tables of their own, beside the kube-proxy that serves all others; its ports are left to it' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l master -d 'URL of the API server, instead of that in the kubeconfig' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -s v -l v -d 'Say more in the log: 2 for each sync, 5 for each transaction' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l vmodule -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l logging-format -d 'How the log is written: text or json [default: text]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l log-flush-frequency -d 'No effect: each line is written at once' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l log-text-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l log-json-split-stream -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l log-text-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l log-json-info-buffer-size -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l feature-gates -d 'Switch features on or off' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l kubeconfig -d 'How to reach the API server [default: as a pod of the cluster]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l kube-api-content-type -d 'No effect: JSON is spoken' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l kube-api-qps -d 'No effect: only lists and watches are asked for' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l kube-api-burst -d 'No effect, as --kube-api-qps' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l bind-address -d 'This node\'s address, if it is to be another than in its Node object [default: 0.0.0.0]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l healthz-bind-address -d 'Where /healthz and /livez are served [default: 0.0.0.0:10256]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l metrics-bind-address -d 'Where /metrics and /proxyMode are served [default: 127.0.0.1:10249]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l healthz-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l metrics-port -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l bind-address-hard-fail -d 'Fail if the addresses for health or metrics cannot be listened on' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l profiling -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l show-hidden-metrics-for-version -d 'No effect: none is hidden' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l proxy-mode -d 'nftables, iptables or ipvs: nftables is what runs; the others choose defaults' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l scheduler -d 'How endpoints are chosen where a Service does not say, in any mode: random, rr, wrr, sh, dh, mh, lc, ...' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l count-connections -d 'Count the connections to each address and port of a Service' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l accounting -d 'Account for the connections of all Services by endpoint: packets and bytes' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ping -d 'Answer pings of the addresses of all Services that have endpoints' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l reset-connections -d 'Reset the TCP connections of all Services to endpoints that are gone' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l iptables-masquerade-bit -d 'The bit of the packet mark that asks for masquerading, in modes iptables and ipvs [default: 14]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l masquerade-all -d 'Masquerade all traffic to cluster IPs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l iptables-localhost-nodeports -d 'Serve NodePorts on 127.0.0.1 and ::1 too' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l iptables-sync-period -d 'Pause before a failed sync is tried again [default: 30s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l iptables-min-sync-period -d 'Least time between two syncs [default: 0s]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-sync-period -d 'As --iptables-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-min-sync-period -d 'As --iptables-min-sync-period, in mode ipvs' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-scheduler -d 'How endpoints are chosen, in mode ipvs [default: rr]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-exclude-cidrs -d 'No effect: there are no IPVS rules' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-strict-arp -d 'No effect: Service addresses are not addresses of the node' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-tcp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-tcpfin-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l ipvs-udp-timeout -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l detect-local-mode -d 'How traffic from pods is told: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l pod-bridge-interface -d 'The bridge of BridgeInterface' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l pod-interface-name-prefix -d 'That of InterfaceNamePrefix' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l cluster-cidr -d 'The addresses of pods' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l nodeport-addresses -d 'The node\'s addresses that serve NodePorts: ranges, and the words primary (those of its Node object) and all' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l oom-score-adj -d 'From -1000 to 1000; less is killed later [default: -999]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-max-per-core -d 'Tracked connections for each CPU; 0 leaves the limit alone [default: 32768]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-min -d 'Least number of tracked connections [default: 131072]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-tcp-timeout-established -d 'How long an idle TCP connection is tracked; 0s leaves it alone [default: 24h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-tcp-timeout-close-wait -d 'The same in CLOSE_WAIT [default: 1h]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-tcp-be-liberal -d 'Do not call packets outside of the TCP window invalid' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-udp-timeout -d 'How long a UDP flow without an answer is tracked; 0s leaves it alone' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l conntrack-udp-timeout-stream -d 'The same with answers' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l config-sync-period -d 'No effect' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l boot-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -l machine-id-file -d '' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -l watch -d 'Look again and again, every so many seconds [default: 2], until Ctrl-C or q; it sorts by new connections (r), connections (c) or name (n)' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -s o -l output -d 'How to print it' -r -f -a "table\t'For people'
json\t'For programs'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -l service-proxy-name -d 'Of a proxy with this name' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -l metrics-bind-address -d 'Where the daemon serves /metrics, to be asked for its health [default: 127.0.0.1:10249, or 127.0.0.1:10349 of a proxy with a name]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -l history -d 'The last changes instead, from the memory of the daemon: when it heard of each, what was written, and after what time the kernel had it. Where there is none, that is said, and the exit status is 0'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -l rate -d 'Look twice, a second apart, and say how many new connections a second there are'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l proto -d 'The protocol [default: those of what is there; tcp where there is nothing]' -r -f -a "tcp\t'TCP'
udp\t'UDP'
sctp\t'SCTP'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l arriving-by -d 'The interface that packets of the client come in by [default: that of the route back to it]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -s o -l output -d 'How to print it' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l service-proxy-name -d 'Of a proxy with this name' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l metrics-bind-address -d 'Where the daemon serves /metrics, to be asked for what the kernel does not have [default: 127.0.0.1:10249, or 127.0.0.1:10349 of a proxy with a name]' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l manifests -d 'Go by the rules that would be installed for the manifests in DIR, instead of this node\'s; needs no root' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l config -d 'With --manifests, a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)' -r -F
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l hostname-override -d 'With --manifests, the name of the node' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -l probe -d 'Connect to each endpoint from this node, by TCP, and say who does not answer within a second. To UDP and SCTP nothing is sent, which is said'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand explain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand trace" -l proto -d 'Only this protocol' -r -f -a "tcp\t'TCP'
udp\t'UDP'
sctp\t'SCTP'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand trace" -l count -d 'End after so many connections' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand trace" -l seconds -d 'End after so many seconds' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand trace" -s o -l output -d 'How to print it' -r -f -a "text\t'For people'
json\t'For programs'"
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand trace" -l service-proxy-name -d 'Of a proxy with this name' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand trace" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand cleanup" -l service-proxy-name -d 'Remove the tables of a proxy with this name instead' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand cleanup" -l metrics-bind-address -d 'Where that kube-proxy serves /metrics' -r
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand cleanup" -l kube-proxy -d 'Remove what kube-proxy has left instead, in all of its modes, and nothing of nftproxyd or of others'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand cleanup" -l after-kube-proxy -d 'Wait until the kube-proxy of this node has written its rules and they serve what the tables serve: no connection fails in between'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand cleanup" -l stay -d 'Then wait to be stopped: for a container, which would be started again and again'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand cleanup" -s h -l help -d 'Print help'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "run" -d 'Proxy the Services of a cluster, or of a folder of manifests, until stopped; the rules stay when it stops'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "render" -d 'Print the nft script of what would be installed for a folder of manifests; needs no root'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "check-config" -d 'Say whether a configuration file can be used, what in it has no effect, and how the API server is reached'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "doctor" -d 'Look for what keeps Services on this node from working, and say how to mend it; changes nothing'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "status" -d 'List every frontend with its policy, endpoints and open connections, as the kernel has them'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "explain" -d 'Say what becomes of a connection to a Service, and why: what this node\'s tables, routes and connections make of it'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "trace" -d 'Say what becomes of connections to an address or a Service while they are made, and who drops those that are dropped'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "cleanup" -d 'Remove nftproxyd\'s tables from the kernel, and nothing else'
complete -c nftproxyd -n "__fish_nftproxyd_using_subcommand help; and not __fish_seen_subcommand_from run render check-config doctor status explain trace cleanup help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
