{{- define "nftproxyd.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- /* Of the pods, for good: the selector of a DaemonSet cannot be changed. */ -}}
{{- define "nftproxyd.selector" -}}
app.kubernetes.io/name: nftproxyd
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "nftproxyd.labels" -}}
{{ include "nftproxyd.selector" . }}
app.kubernetes.io/component: proxy
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "nftproxyd.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The port of an address, as nftproxyd reads it: (list "0.0.0.0:10256" 10256 .). A bare address has the default one; one with
serviceProxyName leaves those of kube-proxy to it. */ -}}
{{- define "nftproxyd.port" -}}
{{- $address := index . 0 | default "" -}}
{{- $port := index . 1 -}}
{{- if regexMatch "^([^:]*|\\[.*\\]):[0-9]+$" $address -}}
{{- $port = regexFind "[0-9]+$" $address | int -}}
{{- end -}}
{{- if and (index . 2).Values.config.serviceProxyName (has (int $port) (list 10249 10256)) -}}
{{- $port = add (index . 1) 100 -}}
{{- end -}}
{{- $port -}}
{{- end -}}

{{- /* The documents of the ConfigMap. Its name ends with a hash of them: a change of the configuration rolls the pods, and one that is no good stops at the first. */ -}}
{{- define "nftproxyd.documents" -}}
{{- $chosen := omit .Values.config "apiVersion" "kind" -}}
{{- $connection := merge (dict "kubeconfig" "/var/lib/nftproxyd/kubeconfig.conf") (.Values.config.clientConnection | default dict) -}}
{{- $conntrack := .Values.config.conntrack | default dict -}}
{{- if not .Values.setSysctls -}}
{{- $untouched := dict "maxPerCore" 0 "tcpEstablishedTimeout" "0s" "tcpCloseWaitTimeout" "0s" -}}
{{- range $field, $value := $conntrack -}}
{{- if and $value (ne (toString $value) "0s") -}}
{{- fail (printf "config.conntrack.%s: a container that is not privileged cannot set it: setSysctls=true adds an init container that can, config.conntrack=null leaves it as it is on the node" $field) -}}
{{- end -}}
{{- end -}}
{{- $conntrack = $untouched -}}
{{- end -}}
{{- $fixed := dict "apiVersion" "kubeproxy.config.k8s.io/v1alpha1" "kind" "KubeProxyConfiguration" "clientConnection" $connection -}}
{{- if $conntrack -}}
{{- $_ := set $fixed "conntrack" $conntrack -}}
{{- end -}}
config.conf: |
  # See nftproxyd.yaml(5). The format is that of kube-proxy.
  {{- merge $fixed $chosen | toYaml | nindent 2 }}
kubeconfig.conf: |
  apiVersion: v1
  kind: Config
  clusters:
  - name: default
    cluster:
      certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
      # An address that works without Services.
      server: {{ required "apiServer: set the URL of the API server, one that works without Services, such as https://192.0.2.10:6443; what kubectl uses: kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}'" .Values.apiServer | quote }}
  contexts:
  - name: default
    context: {cluster: default, namespace: default, user: default}
  current-context: default
  users:
  - name: default
    user:
      tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
{{- end -}}

{{- define "nftproxyd.configMap" -}}
{{ include "nftproxyd.fullname" . }}-{{ include "nftproxyd.documents" . | sha256sum | trunc 10 }}
{{- end -}}
